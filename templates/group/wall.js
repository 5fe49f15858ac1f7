// The wall of pictures, the same scans as a table, and the dialog of one scan.
const tissues = Object.keys(data.measures).filter((name) => data.measures[name].kind === "tissue");
const badge = (flag) => make("span", { class: `flag ${flag || "none"}` }, flag || "no QC");

const url = (text) => (text.startsWith("data:") ? text : text.split("/").map(encodeURIComponent).join("/"));

function picture(i) {
  const box = make("span", { class: "layers" });
  if (!scans.thumbnail[i]) {
    box.append(make("span", { class: "blank" }, "no picture"));
    return box;
  }
  const image = (src, name) => make("img", { src: url(src), alt: "", class: name, width: 720, height: 240, loading: "lazy" });
  box.append(image(scans.thumbnail[i]));
  if (scans.outline[i]) box.append(image(scans.outline[i], "outline"));
  return box;
}

// The slices in full detail, or the small picture where there are none.
function sheets(i) {
  if (!scans.sheet[i]) return picture(i);
  const box = make("span", { class: "layers" });
  const image = (kind, name) => make("img", { src: url(scans.sheet[i] + kind), alt: "", class: name });
  box.append(image("slices.webp"), image("contours.png", "outline"));
  return box;
}

function rateButtons(i) {
  const now = ratingOf(i).rating;
  return RATINGS.map((rating) => make("button", {
    type: "button", class: `rating ${rating}`, "data-rate": rating, "data-of": i,
    "aria-pressed": String(now === rating), "aria-label": `${rating} ${scans.name[i]}`, title: rating,
  }, SIGNS[rating]));
}

function card(i) {
  const reasons = [...scans.reasons[i].split("; ").filter(Boolean), ...outliers[i].map((o) => o.reason)];
  return make("li", { class: `card ${scans.flag[i]}`, "data-scan": scans.name[i], "data-index": i },
    make("button", { type: "button", class: "open", "data-open": i, "aria-label": `Details of ${scans.name[i]}` }, picture(i)),
    make("div", { class: "caption" },
      make("strong", {}, scans.name[i]), badge(scans.flag[i]),
      make("span", { class: "rates", role: "group", "aria-label": `Rating of ${scans.name[i]}` }, ...rateButtons(i))),
    reasons.length ? make("p", { class: "why" }, reasons[0], reasons.length > 1 ? ` (+${reasons.length - 1})` : "") : null);
}

function sheet(indices) {
  const names = [["Scan", "name"], ["Protocol", "protocol"], ["Flag", "flag"], ...tissues.map((name) => [name, `measure:${name}`])];
  const direction = $("descending").checked ? "descending" : "ascending";
  const head = make("tr", {}, ...names.map(([name, key], place) => make("th", {
    scope: "col", class: place > 2 ? "number" : "", "aria-sort": $("sort").value === key ? direction : null,
  }, make("button", { type: "button", class: "sort", "data-sort": key }, name))));
  const rows = indices.map((i) => make("tr", { "data-scan": scans.name[i] },
    make("th", { scope: "row" }, make("button", { type: "button", class: "link", "data-open": i }, scans.name[i])),
    make("td", {}, scans.protocol[i]), make("td", {}, badge(scans.flag[i])),
    ...tissues.map((name) => make("td", { class: "number" }, show(data.values[name][i])))));
  return make("table", { class: "scans" },
    make("caption", {}, "Volumes in mL. TIV is the total intracranial volume."),
    make("thead", {}, head), make("tbody", {}, ...rows));
}

function drawWall() {
  const shown = state.chosen.slice(state.page * PAGE, (state.page + 1) * PAGE);
  const asTable = $("table").checked;
  $("wall").hidden = asTable;
  $("sheet").hidden = !asTable;
  $("wall").replaceChildren(...(asTable ? [] : shown.map(card)));
  $("sheet").replaceChildren(...(asTable ? [sheet(shown)] : []));
  $("wall").classList.toggle("plain", !$("outlines").checked);
  $("detail").classList.toggle("plain", !$("outlines").checked);
  $("none").hidden = shown.length > 0;
  const pages = Math.max(1, Math.ceil(state.chosen.length / PAGE));
  $("pager").textContent = pages > 1 ? `Page ${state.page + 1} of ${pages}` : "";
  for (const [step, end] of [["previous", 0], ["next", pages - 1]]) {
    const button = document.querySelector(`[data-do=${step}]`);
    button.disabled = state.page === end;
    button.hidden = pages === 1;
  }
  $("count").textContent = `${state.chosen.length} of ${total} ${total === 1 ? "scan" : "scans"}`
    + (state.brushed ? `, brushed in ${state.brushed.title}` : "");
  $("bulk-count").textContent = `Rate all ${state.chosen.length} selected:`;
  $("clear").hidden = !state.filtered;
}

// Bring a scan's card in sight, on whatever page it is.
function focusCard(i) {
  const place = state.chosen.indexOf(i);
  if (place < 0) return;
  const page = Math.floor(place / PAGE);
  if (page !== state.page) {
    state.page = page;
    drawWall();
    writeAddress();
  }
  document.querySelector(`#wall [data-open="${i}"], #sheet [data-open="${i}"]`)?.focus();
}

function drawOutliers() {
  const far = (i) => Math.max(...outliers[i].map((outlier) => Math.abs(outlier.z)));
  const rows = state.chosen.filter((i) => outliers[i].length).sort((a, b) => far(b) - far(a));
  $("outlier-count").textContent = rows.length
    ? `${rows.length} of the scans chosen${rows.length > 100 ? ", the first 100 shown" : ""}.`
    : "No outliers among the selected scans.";
  $("outlier-list").replaceChildren(...rows.slice(0, 100).map((i) => make("li", { "data-scan": scans.name[i] },
    make("button", { type: "button", class: "link", "data-open": i }, scans.name[i]),
    ...outliers[i].slice(0, 6).map((outlier) => make("span", { class: "far-value", title: outlier.reason },
      ` ${outlier.measure} ${outlier.z > 0 ? "+" : "−"}${show(Math.abs(outlier.z))}`)),
    outliers[i].length > 6 ? ` and ${outliers[i].length - 6} more` : "")));
  $("outlier-list").parentElement.hidden = rows.length === 0;
}

let opened = null;

function rank(name, i) {
  const own = data.values[name][i];
  const peers = everyone.filter((j) => !scans.excluded[j] && scans.protocol[j] === scans.protocol[i] && data.values[name][j] != null);
  if (own == null || peers.length < 5) return "";
  const below = peers.filter((j) => data.values[name][j] < own).length;
  const equal = peers.filter((j) => data.values[name][j] === own).length;
  return `${Math.round(100 * (below + equal / 2) / peers.length)}`;
}

function drawDetail() {
  if (opened == null) return;
  const i = opened;
  $("detail-title").textContent = scans.name[i];
  $("detail-facts").replaceChildren(badge(scans.flag[i]), ` ${scans.protocol[i]}${scans.excluded[i] ? `, left out: ${scans.excluded[i]}` : ""}`);
  if ($("detail-picture").dataset.scan !== scans.name[i]) {
    $("detail-picture").replaceChildren(sheets(i));
    $("detail-picture").dataset.scan = scans.name[i];
  }
  const reasons = [...scans.reasons[i].split("; ").filter(Boolean), ...outliers[i].map((o) => o.reason)];
  $("detail-reasons").replaceChildren(reasons.length
    ? make("ul", {}, ...reasons.map((reason) => make("li", {}, reason)))
    : make("p", {}, "No quality problems or outliers."));
  $("detail-rate").replaceChildren(...rateButtons(i));
  $("note").value = ratingOf(i).note;
  const found = new Set(ratingOf(i).tags.split(",").map((tag) => tag.trim()));
  for (const box of document.querySelectorAll("[data-tag]")) box.checked = found.has(box.dataset.tag);
  const others = raters.all().filter((rater) => rater !== raters.name && raters.of(rater, i).rating);
  $("others").replaceChildren(...(others.length ? [make("details", {}, make("summary", {}, "Other raters"),
    others.map((rater) => `${called(rater)}: ${raters.of(rater, i).rating}`).join(", "))] : []));
  $("commands").dataset.image = `${data.raw}/${scans.source[i]}`;
  $("commands").dataset.labels = scans.segmentation[i];
  showCommands($("commands"));
  const link = $("detail-page");
  link.hidden = !scans.page[i];
  if (scans.page[i]) link.href = `${encodeURIComponent(scans.page[i])}#${scans.name[i].replace(/[^A-Za-z0-9_-]/g, "-")}`;
  $("detail-numbers").replaceChildren(
    make("thead", {}, make("tr", {}, ...["Measure", "Value", "Unit", "Percentile in its protocol"].map(
      (text, place) => make("th", { scope: "col", class: place % 2 ? "number" : "" }, text)))),
    make("tbody", {}, ...Object.keys(data.measures).map((name) => make("tr", {},
      make("th", { scope: "row", title: data.measures[name].title }, name),
      make("td", { class: "number" }, show(data.values[name][i])), make("td", {}, data.measures[name].units),
      make("td", { class: "number" }, rank(name, i))))));
  for (const [step, place] of [["before", 0], ["after", state.chosen.length - 1]]) {
    document.querySelector(`[data-do=${step}]`).disabled = state.chosen[place] === i;
  }
}

function open(i) {
  opened = i;
  if (!$("detail").open) $("detail").showModal();
  drawDetail();
  writeAddress();
  lit(i);
}

function step(by) {
  const place = state.chosen.indexOf(opened) + by;
  if (place >= 0 && place < state.chosen.length) open(state.chosen[place]);
}
