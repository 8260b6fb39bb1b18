// Adds to the form what a browser can do better with a script: several ways to give a photo, results
// without a new page, downloads, and a history of this visit. Everything it shows of an answer
// was rendered, and escaped, by the server.
"use strict";

const byId = (id) => document.getElementById(id);
const form = byId("score");
const limits = document.body.dataset;
const root = limits.root; // the path that a proxy puts before all others, or nothing
let running = null; // the AbortController of the request that is under way

document.documentElement.classList.add("script");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button && button.name === "sample") {
    const data = options();
    data.append("sample", button.value);
    send("/api/score", data, "the sample photo");
  } else if (button && button.name === "generate") {
    generate();
  } else {
    score([...byId("files").files, ...byId("camera").files]);
  }
});

byId("another").addEventListener("click", () => {
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  generate();
});

byId("stop").addEventListener("click", () => running && running.abort());

for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser would leave the page for the photo
    byId("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  score([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) score(files);
});

function options() {
  const data = new FormData();
  const model = form.querySelector("input[name=model]:checked");
  if (model) data.append("model", model.value);
  if (form.elements.explain.checked) data.append("explain", "1");
  data.append("page", "1");
  return data;
}

function score(files) {
  const MB = 1e6;
  const tooLarge = files.find((file) => file.size > limits.maxFileMb * MB);
  const total = files.reduce((sum, file) => sum + file.size, 0);
  if (!files.length) {
    fail("There is no photo yet; choose, drop or paste one.");
  } else if (files.length > limits.maxFiles) {
    fail(`These are ${files.length} photos; send at most ${limits.maxFiles} at a time.`);
  } else if (tooLarge) {
    fail(`${tooLarge.name} has more than ${Number(limits.maxFileMb)} MB; save a smaller copy of it.`);
  } else if (total > limits.maxBodyMb * MB) {
    fail(`The photos have more than ${Number(limits.maxBodyMb)} MB together; send fewer at a time.`);
  } else {
    const data = options();
    for (const file of files) data.append("files", file, file.name);
    send("/api/score", data, files.length === 1 ? "the photo" : `${files.length} photos`);
  }
}

function generate() {
  if (!byId("seed").reportValidity() || !byId("truncation").reportValidity()) return;
  const data = options();
  data.append("seed", byId("seed").value);
  data.append("truncation", byId("truncation").value);
  send("/api/generate", data, "a generated face");
}

async function send(address, data, what) {
  if (running) running.abort();
  const mine = (running = new AbortController());
  byId("error").textContent = "";
  byId("status").textContent = `Looking at ${what} …`;
  byId("stop").hidden = false;
  try {
    const response = await fetch(root + address, { method: "POST", body: data, signal: mine.signal });
    if (!(response.headers.get("Content-Type") || "").startsWith("application/json")) {
      fail(refusedOnTheWay(response.status));
      return;
    }
    const answer = await response.json();
    if (response.ok) show(answer);
    else fail(answer.error);
  } catch (error) {
    if (error.name === "AbortError") {
      if (running === mine) byId("status").textContent = "Stopped.";
    } else {
      fail("The service cannot be reached; check the connection and try again.");
    }
  } finally {
    if (running === mine) {
      running = null;
      byId("stop").hidden = true;
    }
  }
}

// What a server between this page and the service answers is no JSON.
function refusedOnTheWay(status) {
  return status === 413
    ? "The photos are too large for a server on the way; send fewer, or smaller copies."
    : `A server on the way answered with the status ${status}; try again later.`;
}

function fail(sentence) {
  byId("status").textContent = "";
  byId("error").textContent = sentence;
  byId("error").scrollIntoView({ block: "nearest" });
}

function show(answer) {
  const holder = document.createElement("template");
  holder.innerHTML = answer.html;
  const articles = [...holder.content.querySelectorAll(".result")];
  byId("results").prepend(holder.content);
  articles.forEach((article, number) => {
    const photo = answer.photos[number];
    const rows = photo.row_numbers.map((row) => answer.rows[row]);
    article.append(downloads(photo, rows));
    remember(rows, article);
  });
  byId("status").textContent = articles.length === 1 ? verdicts(answer.rows) : summary(answer.rows);
  articles[0].focus({ preventScroll: true });
  articles[0].scrollIntoView({ block: "nearest" });
}

function percent(row) {
  return `${(100 * row.fake_probability).toFixed(1)} %`;
}

function verdicts(rows) {
  return rows
    .map((row) =>
      row.fake_probability === null ? row.verdict : `${row.model}: ${row.verdict}, ${percent(row)}`,
    )
    .join("; ");
}

function summary(rows) {
  const counts = {};
  for (const row of rows) counts[row.verdict] = (counts[row.verdict] || 0) + 1;
  return Object.entries(counts)
    .map(([verdict, count]) => `${count} ${verdict}`)
    .join(", ");
}

document.addEventListener("input", (event) => {
  if (event.target.classList.contains("opacity")) {
    const layers = event.target.closest(".heat").querySelector(".heat-map");
    layers.style.opacity = event.target.value / 100;
  }
});

function button(text, act) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.addEventListener("click", act);
  return element;
}

function downloads(photo, rows) {
  const line = document.createElement("p");
  line.className = "buttons downloads";
  line.append(
    button("Download as JSON", () => {
      save(new Blob([JSON.stringify(rows, null, 1)], { type: "application/json" }), "rows.json");
    }),
  );
  if (photo.preview) {
    line.append(button("Download as an image", () => draw(photo, rows)));
  }
  return line;
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// The photo with its boxes, and under it a line for each verdict.
async function draw(photo, rows) {
  const image = new Image();
  image.src = photo.preview;
  await image.decode();
  const width = Math.max(image.width, 480);
  const line = 26;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  const declared = rows[0].declared_by;
  const lines = rows.length + (declared ? 2 : 1);
  canvas.height = image.height + line * lines;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(image, 0, 0);
  const colours = { real: "#1b6e3c", uncertain: "#85560a", fake: "#b3261e" };
  const scale = image.width / photo.width;
  pen.font = "16px system-ui, sans-serif";
  rows.forEach((row, number) => {
    pen.strokeStyle = pen.fillStyle = colours[row.verdict] || "#555b63";
    pen.lineWidth = 3;
    if (row.face !== null) {
      const [left, top] = [row.left * scale, row.top * scale];
      pen.strokeRect(left, top, row.right * scale - left, row.bottom * scale - top);
    }
    const face = row.face === null ? "" : `face ${row.face + 1}: `;
    pen.fillText(face + verdicts([row]), 8, image.height + line * (number + 0.75));
  });
  pen.fillStyle = "#555b63";
  if (declared) {
    const said = `declared by the file: ${rows[0].declared || "no origin"} (${declared})`;
    pen.fillText(said, 8, image.height + line * (rows.length + 0.75), width - 16);
  }
  const footer = `${new Date().toISOString().slice(0, 10)}: a reason to look closer, not evidence`;
  pen.fillText(footer, 8, image.height + line * (lines - 0.25));
  canvas.toBlob((blob) => save(blob, "verdict.png"));
}

// The history: rows only, and only in this tab.
const KEY = "visits";
const articlesOf = new Map();

function visits() {
  try {
    return JSON.parse(sessionStorage.getItem(KEY)) || [];
  } catch {
    return []; // storage is barred: nothing is remembered over a reload
  }
}

function remember(rows, article) {
  const visit = { when: new Date().toLocaleTimeString(), rows };
  articlesOf.set(visit.when + rows[0].path, article);
  try {
    sessionStorage.setItem(KEY, JSON.stringify([visit, ...visits()].slice(0, 100)));
  } catch {
    return;
  }
  list();
}

function list() {
  const all = visits();
  byId("history").hidden = !all.length;
  byId("visits").replaceChildren(
    ...all.map((visit) => {
      const item = document.createElement("li");
      item.textContent = `${visit.when} ${visit.rows[0].path}: ${verdicts(visit.rows)} `;
      const article = articlesOf.get(visit.when + visit.rows[0].path);
      if (article && article.isConnected) {
        item.append(
          button("Show", () => {
            article.scrollIntoView();
            article.focus();
          }),
        );
      }
      return item;
    }),
  );
}

byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  articlesOf.clear();
  byId("results").replaceChildren();
  byId("status").textContent = "Forgotten.";
  list();
});

list();
