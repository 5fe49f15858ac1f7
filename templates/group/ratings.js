// Ratings: those the group run read, and over them those made in this browser.
const RATINGS = ["pass", "warn", "fail"];
const SIGNS = { pass: "✓", warn: "!", fail: "✕" };
const KEY = `siam-bids-ratings-${data.id}`;
let own = {};
try { own = JSON.parse(localStorage.getItem(KEY)) || {}; } catch { own = {}; }

const ratingOf = (i) => own[scans.name[i]] || data.ratings[scans.name[i]] || { rating: "", note: "" };

function rate(i, change) {
  own[scans.name[i]] = { ...ratingOf(i), ...change };
  store();
  showRatings();
}

function showRatings() {
  for (const button of document.querySelectorAll("[data-rate]")) {
    button.setAttribute("aria-pressed", String(ratingOf(Number(button.dataset.of)).rating === button.dataset.rate));
  }
}

function store() {
  try { localStorage.setItem(KEY, JSON.stringify(own)); } catch {
    say("This browser cannot store ratings: export them before you close the page.");
  }
}

const say = (text) => { $("message").textContent = text; };

function exportRatings() {
  const clean = (text) => text.replace(/\s+/g, " ").trim() || "n/a";
  const rows = everyone.map((i) => [scans.name[i], ratingOf(i)])
    .filter(([, r]) => r.rating || r.note)
    .map(([name, r]) => [name, r.rating || "n/a", clean(r.note)].join("\t"));
  const text = ["scan\trating\tnote", ...rows].join("\n") + "\n";
  const link = make("a", {
    href: URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" })),
    download: "group_ratings.tsv",
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`${rows.length} ${rows.length === 1 ? "rating" : "ratings"} exported.`);
}

function importRatings(text) {
  const [head, ...rows] = text.split(/\r?\n/).filter(Boolean).map((line) => line.split("\t"));
  const at = (name) => (head || []).indexOf(name);
  if (at("scan") < 0 || at("rating") < 0) {
    say("This file has no columns scan and rating.");
    return;
  }
  const known = new Set(scans.name);
  let taken = 0;
  for (const row of rows) {
    const rating = row[at("rating")];
    if (!known.has(row[at("scan")]) || !(RATINGS.includes(rating) || rating === "n/a")) continue;
    const note = at("note") < 0 ? "" : row[at("note")] || "";
    own[row[at("scan")]] = { rating: rating === "n/a" ? "" : rating, note: note === "n/a" ? "" : note };
    taken += 1;
  }
  store();
  showRatings();
  say(`${taken} of ${rows.length} ratings imported.`);
}
