// What is known of the scans, and which of them are chosen.
const data = JSON.parse(document.getElementById("data").textContent);
const scans = data.scans;
const total = scans.name.length;
const everyone = [...Array(total).keys()];
const $ = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
};
const unique = (values) => [...new Set(values)].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
const indexOf = new Map(scans.name.map((name, i) => [name, i]));
const lower = scans.name.map((name) => name.toLowerCase());
const outliers = scans.name.map((name) => data.outliers[name] || []);
const protocols = unique(scans.protocol);
const PAGE = 60;
const withUnits = (text, units) => (units ? `${text} (${units})` : text);
const measureTitle = (name) => {
  const { kind, units } = data.measures[name];
  return `${withUnits(name, units)}${kind === "tissue" ? "" : `, ${kind}`}`;
};
const show = (value) => value == null ? "–"
  : Math.abs(value) >= 1000 ? value.toLocaleString("en", { maximumFractionDigits: 0 })
  : String(Number(value.toPrecision(4)));

const sorters = {
  name: { title: "name", value: null },
  protocol: { title: "protocol", value: (i) => protocols.indexOf(scans.protocol[i]) },
  flag: { title: "flag", value: (i) => ({ fail: 2, warn: 1 })[scans.flag[i]] || 0 },
  outliers: { title: "number of outliers", value: (i) => outliers[i].length },
};
for (const name of Object.keys(data.measures)) {
  sorters[`measure:${name}`] = { title: measureTitle(name), value: (i) => data.values[name][i] };
}

const state = { page: 0, brushed: null, chosen: everyone, isChosen: new Uint8Array(total).fill(1), filtered: false };
const listeners = [];
const changed = () => { for (const listener of listeners) listener(); };

function choose({ keepPage = false } = {}) {
  const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const equal = ["protocol", "session", "flag"].map((id) => [scans[id], $(id).value]).filter(([, v]) => v !== "*");
  for (const select of document.querySelectorAll("[data-category]")) {
    if (select.value !== "*") equal.push([data.categories[select.dataset.category], select.value]);
  }
  const rating = $("rating").value;
  const rated = (i) => (rating === "differ" ? raters.differ(i) : ratingOf(i).rating === rating);
  const sorter = sorters[$("sort").value];
  const least = $("least").value === "" ? -Infinity : Number($("least").value);
  const most = $("most").value === "" ? Infinity : Number($("most").value);
  const ranged = sorter.value && (least > -Infinity || most < Infinity);
  const fits = (i) => words.every((word) => lower[i].includes(word))
    && equal.every(([values, value]) => values[i] === value)
    && (rating === "*" || rated(i))
    && (!state.brushed || state.brushed.scans.has(i))
    && (!ranged || (sorter.value(i) != null && sorter.value(i) >= least && sorter.value(i) <= most));
  state.chosen = everyone.filter(fits);
  const sign = $("descending").checked ? -1 : 1;
  if (sorter.value) {
    state.chosen.sort((a, b) => {
      const [one, other] = [sorter.value(a), sorter.value(b)];
      if (one == null || other == null) return (one == null) - (other == null) || a - b;
      return sign * (one - other) || a - b;
    });
  } else if (sign < 0) state.chosen.reverse();
  state.isChosen.fill(0);
  for (const i of state.chosen) state.isChosen[i] = 1;
  state.words = words.length > 0;
  state.filtered = state.chosen.length < total;
  if (!keepPage) state.page = 0;
  state.page = Math.max(0, Math.min(state.page, Math.ceil(state.chosen.length / PAGE) - 1));
  changed();
}

function clearChoice() {
  for (const id of ["find", "least", "most"]) $(id).value = "";
  for (const select of document.querySelectorAll("#tools select:not(#sort, #colour)")) select.value = "*";
  state.brushed = null;
  choose();
}

function sortBy(key) {
  const again = $("sort").value === key;
  $("descending").checked = again ? !$("descending").checked : key !== "name" && key !== "protocol";
  $("sort").value = key;
  choose();
}
