// Keeps a page alive: log lines are shown as text, everything else is fetched again from the
// sender, which has escaped it, whenever its version differs. Without this module the pages still work.

import { Log } from "./log.js";
import "./notify.js";
import "./sliders.js";

const main = document.querySelector("main[data-stream]");
const box = document.getElementById("log");
const log = box && new Log(box);
const charts = document.getElementById("charts");
const trouble = document.getElementById("trouble");
const AGAIN_MS = 10_000;
const TROUBLE_MS = 3000; // a sender that restarts is back by then
const REACHED = "a, button, input, select, textarea, summary, [tabindex]"; // by the keyboard
let busy = false;
let wanted = "";
let source = null;
let again = 0;
let worry = 0;

if (main) {
  connect();
  window.addEventListener("pagehide", () => { source.close(); reached(); });
  document.getElementById("try-now").addEventListener("click", () => { source.close(); connect(); diagnose(); });
  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}
if (charts) import("./charts.js").then((module) => module.showCharts(charts));
tellAges();
setInterval(tellAges, 10_000);

function connect() {
  clearTimeout(again);
  source = new EventSource(main.dataset.stream);
  source.onopen = reached;
  source.addEventListener("version", (event) => {
    refresh(JSON.parse(event.data));
    document.dispatchEvent(new Event("trainforge:news"));
  });
  source.addEventListener("end", () => source.close());
  source.addEventListener("skipped", () => log?.skipped());
  if (log) source.onmessage = (event) => log.take(JSON.parse(event.data));
  // A browser connects again by itself, but not after an answer that is no stream, as a proxy gives while
  // the sender starts.
  source.onerror = () => {
    worry ||= setTimeout(diagnose, TROUBLE_MS);
    if (source.readyState === EventSource.CLOSED) again = setTimeout(connect, AGAIN_MS);
  };
}

function reached() {
  clearTimeout(worry);
  worry = 0;
  trouble.hidden = true;
}

// What is wrong, as far as can be told from here; the page shows its last state meanwhile.
async function diagnose() {
  const answer = await fetch("/api/me").catch(() => null);
  if (source.readyState === EventSource.OPEN) return;
  trouble.querySelector("b").textContent = !navigator.onLine ? "This computer is offline."
    : !answer ? "The sender does not answer: it is stopped, or the network between is down."
    : answer.status === 401 ? "You are logged out: load the page again."
    : answer.ok ? "The sender answers, but what is new does not come through." : `The sender answers with ${answer.status}.`;
  trouble.hidden = false;
}

async function refresh(version) {
  wanted = version;
  if (busy || version === main.dataset.version) return;
  busy = true;
  try {
    const answer = await fetch(main.dataset.page || location.href, { headers: { Accept: "text/html", "X-Live": "1" } });
    if (answer.redirected || !answer.ok) return;
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    main.dataset.version = version;
  } catch {
    return; // the stream connects again by itself, and then tells the version again
  } finally {
    busy = false;
  }
  if (wanted !== version) refresh(wanted);
}

function show(page) {
  document.title = page.title;
  for (const part of page.querySelectorAll("[data-live]")) {
    const old = document.getElementById(part.id);
    if (!old || old.isEqualNode(part)) continue;
    const open = [...old.querySelectorAll("details")].map((item) => item.open);
    const fresh = document.adoptNode(part);
    [...fresh.querySelectorAll("details")].forEach((item, index) => { item.open = open[index] ?? false; });
    for (const box of old.querySelectorAll("input:checked")) {
      const same = [...fresh.querySelectorAll("input")].find((one) => one.name === box.name && one.value === box.value);
      if (same) same.checked = true;
    }
    const held = [...old.querySelectorAll(REACHED)].indexOf(document.activeElement);
    const scrolled = [...old.querySelectorAll(".wide")].map((item) => item.scrollLeft);
    old.replaceWith(fresh);
    if (held >= 0) fresh.querySelectorAll(REACHED)[held]?.focus({ preventScroll: true });
    [...fresh.querySelectorAll(".wide")].forEach((item, index) => { item.scrollLeft = scrolled[index] ?? 0; });
  }
  tellAges();
}

function tellAges() {
  for (const time of document.querySelectorAll("time[data-clock]")) {
    time.textContent = new Date(time.dateTime).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  }
  for (const time of document.querySelectorAll("time[datetime]:not([data-exact])")) {
    const passed = Math.max((Date.now() - Date.parse(time.dateTime)) / 1000, 0);
    const [length, unit] = passed >= 86400 ? [86400, "d"] : passed >= 3600 ? [3600, "h"]
      : passed >= 60 ? [60, "min"] : [1, "s"];
    time.textContent = passed < 5 ? "just now" : `${Math.floor(passed / length)} ${unit} ago`;
  }
}
