// Adds to the form what a browser can do better with a script: photos are looked at as soon as they
// are given, each by itself and shown when its result comes; downloads; and a history of this visit.
// Everything it shows of an answer was rendered, and escaped, by the server.
"use strict";

const byId = (id) => document.getElementById(id);
const form = byId("score");
const limits = document.body.dataset;
const root = limits.root; // the path that a proxy puts before all others, or nothing
const WORDS = JSON.parse(limits.words); // verdict → what people read
const AT_ONCE = 2; // photos on the way: while one is scored the next is read
const TRIES = 5; // of a photo of several, where the service is busy
let running = null; // the AbortController of what is under way
let last = null; // does again what was done last

document.documentElement.classList.add("script");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.submitter;
  if (button && button.name === "sample") {
    look([{ name: button.value, field: "sample", value: button.value }]);
  } else if ((button && button.name === "generate") || document.activeElement.closest("#generate")) {
    generate(); // the latter by the Enter key in one of its fields
  }
});

for (const id of ["files", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // the same photo may be chosen again
    if (files.length) score(files);
  });
}

byId("another").addEventListener("click", () => {
  byId("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  generate();
});

byId("again").addEventListener("click", () => last());

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

function score(files) {
  look(files.map((file) => ({ name: file.name, field: "files", value: file })));
}

function generate() {
  if (!byId("seed").reportValidity() || !byId("truncation").reportValidity()) return;
  const values = { seed: byId("seed").value, truncation: byId("truncation").value };
  look([{ name: "a generated face", values }]);
}

// A request for one photo, with the options as they are.
function request(photo) {
  const data = new FormData();
  const model = document.querySelector("input[name=model]:checked");
  if (model) data.append("model", model.value);
  for (const id of ["explain", "stability"]) if (byId(id).checked) data.append(id, "1");
  data.append("page", "1");
  if (photo.field) data.append(photo.field, photo.value);
  for (const [name, value] of Object.entries(photo.values || {})) data.append(name, value);
  return { address: photo.values ? "/api/generate" : "/api/score", data };
}

// Look at photos, each by itself, and show each result in its place as soon as it is there.
async function look(photos) {
  if (running) running.abort();
  const mine = (running = new AbortController());
  byId("error").textContent = "";
  byId("notes").replaceChildren();
  if (!photos.length) {
    running = null;
    return fail("There is no photo yet; choose, drop or paste one.");
  }
  last = () => look(photos);
  byId("again").hidden = false;
  const places = photos.map(({ name }) => waiting(name));
  byId("results").prepend(...places);
  fold();
  reveal(byId("progress"));
  const one = photos.length === 1;
  const found = []; // the verdict of each photo
  step();

  function step(said = "") {
    byId("bar").hidden = byId("stop").hidden = false;
    if (one) byId("bar").removeAttribute("value");
    else [byId("bar").max, byId("bar").value] = [photos.length, found.length];
    const far = `${found.length} of ${photos.length} photos looked at`;
    tell(one ? `Looking at ${photos[0].name} …` : `${far} …${said}`);
  }

  async function next(queue) {
    for (const [number, photo] of queue) {
      try {
        const asked = request(photo);
        const answer = await send(asked, mine.signal, one ? 1 : TRIES);
        const article = show(answer, places[number], asked);
        found.push(article.dataset.verdict);
        if (running !== mine) return;
        if (one) took(article, answer);
        else step(` ${photo.name}: ${wordsOf(article)}`);
      } catch (error) {
        if (!(error instanceof Refused) || one || error.forAll) throw error;
        refuse(places[number], error.message);
        found.push("refused");
        step(` ${photo.name}: not looked at`);
      }
    }
  }

  const queue = photos.entries(); // the workers take from it in turn
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, () => next(queue)));
    if (running === mine && !one) tell(summary(found));
  } catch (error) {
    if (running !== mine) return;
    mine.abort(); // the other workers, too
    if (error.name === "AbortError") tell("Stopped.");
    else if (error instanceof Refused) fail(error.message);
    else throw error;
  } finally {
    for (const place of places) if (place.classList.contains("waiting")) place.remove();
    fold();
    if (running === mine) {
      running = null;
      byId("bar").hidden = byId("stop").hidden = true;
    }
  }
}

// Why there is no result; `forAll` where it would be the same for every other photo.
class Refused extends Error {
  constructor(sentence, forAll = false) {
    super(sentence);
    this.forAll = forAll;
  }
}

async function send({ address, data }, signal, tries) {
  const file = data.get("files");
  if (file && file.size > limits.maxFileMb * 1e6) {
    const most = Number(limits.maxFileMb);
    throw new Refused(`${file.name} has more than ${most} MB; save a smaller copy of it.`);
  }
  let response;
  try {
    response = await fetch(root + address, { method: "POST", body: data, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service cannot be reached; check the connection and try again.", true);
  }
  const kind = response.headers.get("Content-Type") || "";
  if (response.ok && kind === "application/zip") return response.blob();
  if (!kind.startsWith("application/json")) {
    throw new Refused(refusedOnTheWay(response.status), response.status !== 413);
  }
  const answer = await response.json();
  if (response.ok) return answer;
  const wait = Number(response.headers.get("Retry-After"));
  if (!wait || tries === 1) {
    throw new Refused(answer.error, [401, 429, 503].includes(response.status));
  }
  await pause(wait, signal);
  return send({ address, data }, signal, tries - 1);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

// What a server between this page and the service answers is no JSON.
function refusedOnTheWay(status) {
  return status === 413
    ? "The photo is too large for a server on the way; send a smaller copy."
    : `A server on the way answered with the status ${status}; try again later.`;
}

// Say how far it is. What `isShown` in a result, too, only screen readers are told.
function tell(sentence, isShown = false) {
  byId("status").textContent = sentence;
  byId("status").classList.toggle("shown", isShown);
}

function fail(sentence) {
  tell("");
  byId("error").textContent = sentence;
  byId("error").scrollIntoView({ block: "nearest" });
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// The place of a result that is on its way.
function waiting(name) {
  const article = element("article", "result waiting");
  article.append(element("h2", "", name), element("p", "hint", "Waiting …"));
  return article;
}

function refuse(place, sentence) {
  place.className = "result";
  place.dataset.verdict = "refused";
  place.lastChild.replaceWith(element("p", "verdict error", "Not looked at"), element("p", "", sentence));
}

// Put the result of a request in its place; its article.
function show(answer, place, asked) {
  const holder = document.createElement("template");
  holder.innerHTML = answer.html;
  const article = holder.content.querySelector(".result");
  const photo = answer.photos[0];
  article.append(downloads(photo, answer.rows, asked));
  for (const pressed of article.querySelectorAll(".wrong button")) {
    pressed.addEventListener("click", () => reportWrong(asked.data, pressed));
  }
  place.replaceWith(article);
  for (const note of answer.notes) {
    const said = [...byId("notes").children].some((child) => child.textContent === note);
    if (!said) byId("notes").append(element("p", "note", note));
  }
  remember(answer.rows, article);
  return article;
}

// Say the result of a single photo, and take the reader there.
function took(article, answer) {
  const share = article.querySelectorAll(".share");
  const more = share.length === 1 ? ` ${share[0].textContent}` : "";
  tell(`${answer.photos[0].name}: ${wordsOf(article)}.${more}`, true);
  article.focus({ preventScroll: true });
  reveal(article);
}

// Where there are results, they come first, and what asks for photos takes less room.
function fold() {
  const answered = byId("results").children.length > 0;
  if (byId("samples") && answered !== document.body.classList.contains("answered")) {
    byId("samples").open = !answered;
  }
  document.body.classList.toggle("answered", answered);
}

function reveal(shown) {
  const { top } = shown.getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) shown.scrollIntoView();
}

function wordsOf(article) {
  return article.querySelector(".verdict strong").textContent;
}

function percent(row) {
  return `${(100 * row.fake_probability).toFixed(1)} %`;
}

function inWords(row) {
  const words = WORDS[row.verdict].toLowerCase();
  return row.fake_probability === null ? words : `${words} (${percent(row)} by ${row.model})`;
}

function verdicts(rows) {
  return rows.map(inWords).join("; ");
}

function summary(found) {
  const said = { ...WORDS, refused: "Not looked at" };
  const parts = Object.entries(said)
    .map(([verdict, words]) => [words, found.filter((each) => each === verdict).length])
    .filter(([, count]) => count)
    .map(([words, count]) => `${count} × ${words.toLowerCase()}`);
  return `${found.length} photos: ${parts.join(", ")}.`;
}

document.addEventListener("input", (event) => {
  if (event.target.classList.contains("opacity")) {
    const layers = event.target.closest(".heat").querySelector(".heat-map");
    layers.style.opacity = event.target.value / 100;
  }
});

function button(text, act) {
  const made = element("button", "", text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

function downloads(photo, rows, asked) {
  const line = element("p", "buttons downloads");
  line.append(
    button("Download as JSON", () => {
      save(new Blob([JSON.stringify(rows, null, 1)], { type: "application/json" }), "rows.json");
    }),
  );
  if (photo.preview) {
    line.append(button("Download as an image", () => draw(photo, rows)));
  }
  if (asked.address === "/api/score") {
    line.append(button("Save a record", (event) => saveRecord(asked.data, event.target)));
  }
  return line;
}

// Have a report and its record made of a photo that was scored.
async function saveRecord(asked, pressed) {
  const record = await sendAgain("/api/record", asked, {}, pressed, "Making the record …");
  if (!record) return;
  save(record, "record.zip");
  tell("The record was saved as record.zip.");
}

// Report that the verdict on a face is wrong.
async function reportWrong(asked, pressed) {
  const line = pressed.closest(".wrong");
  const more = { face: line.dataset.face, truth: pressed.value };
  const answer = await sendAgain("/api/report", asked, more, pressed, "Keeping the face …");
  if (!answer) return;
  line.textContent = `Kept as ${pressed.value}: ${answer.kept}`;
  tell(line.textContent, true);
}

// Send a photo again that was scored, since nothing of it was kept, with the same detectors and
// options; the answer, or nothing where that is refused, which is said.
async function sendAgain(address, asked, more, pressed, doing) {
  const data = new FormData();
  for (const [name, value] of [...asked, ...Object.entries(more)]) {
    const wanted = name !== "page" && (name !== "explain" || address === "/api/record");
    if (wanted) data.append(name, value);
  }
  byId("error").textContent = "";
  pressed.disabled = true;
  tell(doing);
  try {
    return await send({ address, data }, new AbortController().signal, 1);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    fail(error.message);
  } finally {
    pressed.disabled = false;
  }
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
    pen.fillText(face + inWords(row), 8, image.height + line * (number + 0.75), width - 16);
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
  if (running) running.abort();
  sessionStorage.removeItem(KEY);
  articlesOf.clear();
  byId("results").replaceChildren();
  byId("again").hidden = true;
  last = null;
  fold();
  tell("Forgotten.");
  list();
});

list();
