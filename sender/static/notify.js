// Tells of jobs that end while a page is open. Permission is asked for on a click alone, and each end is
// told once, whatever number of tabs there is.

const KEY = "trainforge-told";
const EVERY_MS = 10_000;
const ENDED = new Set(["completed", "failed", "cancelled"]);
const button = document.getElementById("tell-me");
let tag = "";

if (button && "Notification" in window && navigator.locks) {
  show();
  button.addEventListener("click", async () => { await Notification.requestPermission(); show(); look(); });
  setInterval(look, EVERY_MS);
  look();
}

function show() {
  button.hidden = Notification.permission !== "default";
}

async function look() {
  if (Notification.permission !== "granted") return;
  await navigator.locks.request(KEY, async () => {
    const answer = await fetch("/api/jobs?limit=50", { headers: tag ? { "If-None-Match": tag } : {} }).catch(() => null);
    if (!answer?.ok) return; // also where nothing has changed
    tag = answer.headers.get("ETag") ?? "";
    const known = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    const { jobs } = await answer.json();
    localStorage.setItem(KEY, JSON.stringify(Object.fromEntries(jobs.map((job) => [job.id, job.state]))));
    for (const job of jobs) if (ENDED.has(job.state) && known[job.id] && known[job.id] !== job.state) tell(job);
  });
}

function tell(job) {
  const told = new Notification(`${job.project || "A job"} ${job.state}`, {
    body: [job.subject, job.code].filter(Boolean).join("\n"), tag: `trainforge-${job.id}`,
  });
  told.onclick = () => { window.focus(); location.href = `/jobs/${job.id}`; };
}
