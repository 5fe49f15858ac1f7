// Ratings of all raters: those the group run read, and over them those made or imported in this browser.
const RATINGS = ["pass", "warn", "fail"];
const SIGNS = { pass: "✓", warn: "!", fail: "✕" };
const TAGS = [
  "motion", "ghosting", "ringing", "wrap-around", "noise", "inhomogeneity", "metal", "coverage", "pathology",
  "segmentation error",
];
const KEY = `siam-bids-ratings-${data.id}`;
const NAME = "siam-bids-rater";
const NONE = { rating: "", note: "", tags: "", time: "" };
const columns = ["rater", "scan", "rating", "note", "tags", "time"];

const say = (text) => { $("message").textContent = text; };

const raters = {
  name: "",
  kept: {}, // rater: { scan: rating }
  undo: null,

  load() {
    let found = {};
    try {
      found = JSON.parse(localStorage.getItem(KEY)) || {};
      this.name = localStorage.getItem(NAME) || "";
    } catch { /* nothing is stored, or not by this page */ }
    this.kept = found.raters ?? (Object.keys(found).length ? { "": found } : {}); // the second: as of 0.13
  },

  store() {
    try { localStorage.setItem(KEY, JSON.stringify({ raters: this.kept })); } catch {
      say("This browser cannot store ratings: export them before you close the page.");
    }
  },

  of(rater, i) {
    const name = scans.name[i];
    return { ...NONE, ...(this.kept[rater]?.[name] ?? data.ratings[rater]?.[name]) };
  },

  set(rater, i, change) {
    this.kept[rater] ??= {};
    this.kept[rater][scans.name[i]] = { ...this.of(rater, i), ...change };
  },

  // Ratings given before the name are those of the name.
  rename(name) {
    this.name = name;
    try { localStorage.setItem(NAME, name); } catch { /* it is asked for again */ }
    if (name && this.kept[""] && !this.kept[name]) {
      this.kept[name] = this.kept[""];
      delete this.kept[""];
      this.store();
    }
  },

  all() {
    const known = new Set([...Object.keys(data.ratings), ...Object.keys(this.kept)]);
    return [...known].filter((rater) => everyone.some((i) => this.of(rater, i).rating)).sort();
  },

  differ(i) {
    const names = new Set([...Object.keys(data.ratings), ...Object.keys(this.kept)]);
    return new Set([...names].map((rater) => this.of(rater, i).rating).filter(Boolean)).size > 1;
  },
};
raters.load();

const ratingOf = (i) => raters.of(raters.name, i);
const called = (rater) => rater || "unnamed";
const now = () => `${new Date().toISOString().slice(0, 19)}Z`;

function rate(i, change) {
  raters.set(raters.name, i, { ...change, time: now() });
  raters.undo = null;
  raters.store();
  showRatings();
}

function rateAndMoveOn(i, rating) {
  rate(i, { rating });
  if (!rating || !$("advance").checked) return;
  if (opened === i) step(1);
  else if (document.activeElement?.closest("#wall")) focusCard(state.chosen[state.chosen.indexOf(i) + 1]);
}

function rateChosen(rating) {
  const before = structuredClone(raters.kept);
  for (const i of state.chosen) raters.set(raters.name, i, { rating, time: now() });
  raters.undo = before;
  raters.store();
  showRatings();
  say(`${state.chosen.length} ${state.chosen.length === 1 ? "scan" : "scans"} rated ${rating || "none"}.`);
}

function undoRating() {
  raters.kept = raters.undo;
  raters.undo = null;
  raters.store();
  showRatings();
  say("Undone.");
}

function showRatings() {
  for (const button of document.querySelectorAll("[data-rate]")) {
    button.setAttribute("aria-pressed", String(ratingOf(Number(button.dataset.of)).rating === button.dataset.rate));
  }
  $("undo").hidden = !raters.undo;
  drawAgreement();
}

function exportRatings() {
  const clean = (text) => text.replace(/\s+/g, " ").trim() || "n/a";
  const rows = everyone.map((i) => ({ scan: scans.name[i], rater: raters.name, ...ratingOf(i) }))
    .filter((row) => row.rating || row.note || row.tags)
    .map((row) => columns.map((name) => clean(row[name])).join("\t"));
  const text = `${[columns.join("\t"), ...rows].join("\n")}\n`;
  const word = raters.name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const link = make("a", {
    href: URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" })),
    download: `group_ratings${word ? `_${word}` : ""}.tsv`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`${rows.length} ${rows.length === 1 ? "rating" : "ratings"} exported.`);
}

function importRatings(text, file) {
  const [head, ...rows] = text.split(/\r?\n/).filter(Boolean).map((line) => line.split("\t"));
  const at = (name) => (head || []).indexOf(name);
  if (at("scan") < 0 || at("rating") < 0) {
    say(`${file} has no columns scan and rating.`);
    return;
  }
  let taken = 0;
  for (const row of rows) {
    const cell = (name) => { const own = row[at(name)] ?? ""; return at(name) < 0 || own === "n/a" ? "" : own; };
    const i = indexOf.get(cell("scan"));
    const word = cell("rating").toLowerCase();
    if (i == null || !["", ...RATINGS].includes(word)) continue;
    const rating = { rating: word, note: cell("note"), tags: cell("tags"), time: cell("time") };
    raters.set(cell("rater") || raters.name, i, rating);
    taken += 1;
  }
  raters.store();
  showRatings();
  say(`${taken} of ${rows.length} ${rows.length === 1 ? "rating" : "ratings"} imported.`);
}

// Percent agreement and Cohen's kappa (Educ. Psychol. Meas. 1960) of two raters.
function agreement(one, other) {
  const both = everyone.map((i) => [raters.of(one, i).rating, raters.of(other, i).rating]).filter(([a, b]) => a && b);
  const same = both.filter(([a, b]) => a === b).length / both.length;
  const share = (place, rating) => both.filter((pair) => pair[place] === rating).length / both.length;
  const chance = RATINGS.reduce((sum, rating) => sum + share(0, rating) * share(1, rating), 0);
  return { count: both.length, percent: 100 * same, kappa: chance < 1 ? (same - chance) / (1 - chance) : null };
}

function drawAgreement() {
  const names = raters.all();
  for (const element of [$("agreement"), $("to-agreement")]) element.hidden = names.length < 2;
  if (names.length < 2) return;
  const cells = (tag, texts) => texts.map((text, place) => make(tag, { class: place > 1 ? "number" : "" }, String(text)));
  const pairs = names.flatMap((one, place) => names.slice(place + 1).map((other) => [one, other]));
  $("agreement-table").replaceChildren(
    make("thead", {}, make("tr", {}, ...cells("th", ["Rater", "Rater", "Scans", "Same, %", "Cohen's κ"]))),
    make("tbody", {}, ...pairs.map(([one, other]) => {
      const { count, percent, kappa } = agreement(one, other);
      return make("tr", {}, ...cells("td", [
        called(one), called(other), count, count ? percent.toFixed(1) : "–", kappa == null || !count ? "–" : kappa.toFixed(3),
      ]));
    })),
  );
  const differing = everyone.filter((i) => raters.differ(i));
  $("disagreement-count").textContent = differing.length
    ? `${differing.length} ${differing.length === 1 ? "scan has" : "scans have"} different ratings${differing.length > 100 ? ", the first 100 shown" : ""}:`
    : "No scan has different ratings.";
  $("disagreements").replaceChildren(...differing.slice(0, 100).map((i) => make("li", {},
    make("button", { type: "button", class: "link", "data-open": i }, scans.name[i]),
    ...names.filter((rater) => raters.of(rater, i).rating).map((rater) => make("span", { class: "far-value" },
      ` ${called(rater)}: ${raters.of(rater, i).rating}`)))));
}
