const search = document.getElementById("search");
search.hidden = false;
search.form.addEventListener("submit", event => event.preventDefault());
search.addEventListener("input", () => {
  const wanted = search.value.toLowerCase();
  for (const name of document.querySelectorAll(".name"))
    name.parentElement.hidden = !name.textContent.toLowerCase().includes(wanted);
});
