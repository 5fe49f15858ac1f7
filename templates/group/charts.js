// Plots of what the scans measure; drawn when they come into view, redrawn when the choice changes.
const charts = [];
const style = () => getComputedStyle(document.documentElement);
const ink = (name) => style().getPropertyValue(`--${name}`).trim();
// What points are coloured by: a value for each scan, and all values in order.
const hues = () => data.categories[$("colour").value] ?? scans.protocol;
const hueNames = () => (data.categories[$("colour").value] ? unique(hues()) : protocols);
const SIGNS_OF_HUES = ["circle", "triangle", "diamond", "rect"]; // six colours of each
const hueSymbol = (place) => SIGNS_OF_HUES[Math.floor(place / 6) % SIGNS_OF_HUES.length];
let litScan = null;

const jitter = (i) => ((i * 0.618034) % 1) - 0.5;

function quantile(sorted, share) {
  const at = (sorted.length - 1) * share;
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

function box(values) {
  if (values.length < 5) return null;
  const sorted = Float64Array.from(values).sort();
  const [q1, median, q3] = [0.25, 0.5, 0.75].map((share) => quantile(sorted, share));
  const reach = 1.5 * (q3 - q1);
  const within = sorted.filter((value) => value >= q1 - reach && value <= q3 + reach);
  return { low: within[0], q1, median, q3, high: within[within.length - 1] };
}

class Plot {
  constructor(element, title, axes, points, extra = () => []) {
    Object.assign(this, { element, title, axes, points, extra, chart: null, stale: true, seen: false });
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", this.title);
    charts.push(this);
    watcher.observe(element);
  }

  refresh() {
    this.stale = true;
    if (this.seen) this.draw();
  }

  draw() {
    if (!this.stale) return;
    this.stale = false;
    if (!this.chart) this.start();
    const points = this.points();
    const chosen = points.filter(([, , i]) => state.isChosen[i]);
    const others = points.filter(([, , i]) => !state.isChosen[i]);
    const size = points.length > 2000 ? 3 : points.length > 300 ? 5 : 7;
    const series = [{ id: "others", data: others, itemStyle: { color: ink("line"), opacity: 0.8 } }];
    const hue = hues();
    for (const [place, value] of hueNames().entries()) {
      series.push({
        id: `of ${value}`, data: chosen.filter(([, , i]) => hue[i] === value),
        symbol: hueSymbol(place),
        itemStyle: { color: ink(`c${place % 6}`), opacity: points.length > 300 ? 0.55 : 0.85 },
      });
    }
    series.push({
      id: "lit", data: this.ring(points), symbolSize: size + 7, z: 5,
      itemStyle: { color: "transparent", borderColor: ink("ink"), borderWidth: 2 },
    });
    this.chart.setOption({
      ...this.axes(),
      series: [
        ...series.map((one) => ({ type: "scatter", symbolSize: size, z: 3, animation: false, ...one })),
        ...this.extra(),
      ],
    }, { replaceMerge: ["series"] });
    this.element.setAttribute("aria-label", this.describe(points));
  }

  ring(points) {
    return points.filter(([, , i]) => i === litScan || (state.words && state.isChosen[i] && state.chosen.length <= 200));
  }

  light() {
    if (this.chart && this.seen && !this.stale) {
      this.chart.setOption({ series: [{ id: "lit", data: this.ring(this.points()) }] });
    }
  }

  describe(points) {
    const parts = protocols.map((protocol) => {
      const values = points.filter(([, , i]) => scans.protocol[i] === protocol && !scans.excluded[i]).map(([, y]) => y).sort((a, b) => a - b);
      return values.length ? `${protocol}: ${values.length} ${values.length === 1 ? "scan" : "scans"}, median ${show(quantile(values, 0.5))}` : null;
    });
    return `${this.title}. ${parts.filter(Boolean).join("; ")}`;
  }

  start() {
    this.chart = echarts.init(this.element, null, { renderer: "canvas" });
    this.chart.setOption({
      animation: false,
      toolbox: { show: false },
      brush: { toolbox: [], xAxisIndex: 0, brushMode: "single", throttleType: "debounce", throttleDelay: 50, transformable: false, outOfBrush: { colorAlpha: 1 },
        brushStyle: { color: "rgba(120,140,170,.2)", borderColor: ink("link"), borderWidth: 1 } },
      tooltip: { trigger: "item", confine: true, renderMode: "html", formatter: ({ data: point }) => {
        const name = document.createElement("span");
        name.textContent = `${scans.name[point[2]]}: ${show(point[1])}`;
        return name;
      } },
    });
    this.chart.dispatchAction({ type: "takeGlobalCursor", key: "brush", brushOption: { brushType: "rect", brushMode: "single" } });
    this.chart.on("brushEnd", ({ areas }) => this.brushed(areas));
    this.chart.on("click", ({ data: point }) => { if (point) open(point[2]); });
    this.chart.on("mouseover", ({ data: point }) => { if (point) lit(point[2], this); });
  }

  brushed(areas) {
    if (!areas.length) {
      if (state.brushed?.plot === this) { state.brushed = null; choose(); }
      return;
    }
    const [[left, right], [bottom, top]] = areas[0].coordRange;
    const inside = this.points().filter(([x, y]) => x >= left && x <= right && y >= bottom && y <= top);
    state.brushed = { plot: this, title: this.title, scans: new Set(inside.map(([, , i]) => i)) };
    choose();
  }

  clearBrush() {
    this.chart?.dispatchAction({ type: "brush", areas: [] });
  }
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const plot = charts.find((one) => one.element === target);
    if (!plot) continue;
    plot.seen = isIntersecting;
    if (isIntersecting) plot.draw();
  }
}, { rootMargin: "200px" });

const page = document.documentElement;
const fit = () => { for (const plot of charts) plot.chart?.resize(); };
new ResizeObserver(() => { if (!page.classList.contains("paper")) fit(); }).observe(document.body);

// On paper all plots are drawn, in the colours of the light scheme; the stylesheet scales them there.
function drawAllFor(paper) {
  page.classList.toggle("paper", paper);
  for (const image of document.querySelectorAll("#wall img")) image.loading = "eager";
  for (const plot of charts) {
    plot.stale = true;
    if (paper || plot.seen) plot.draw();
  }
  if (!paper) fit();
}
addEventListener("beforeprint", () => drawAllFor(true));
addEventListener("afterprint", () => drawAllFor(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const plot of charts) plot.refresh();
});

const axis = (more) => ({
  axisLine: { show: false }, axisTick: { show: false }, axisLabel: { color: ink("soft"), fontSize: 11 },
  nameTextStyle: { color: ink("soft") }, splitLine: { lineStyle: { color: ink("line") } }, scale: true, ...more,
});

// Points and boxes of a measure in lanes: scans whose lane is null are in none.
function lanesPlot(element, title, name, lanes, laneOf, { named = false, ends } = {}) {
  const values = data.values[name];
  const inLane = everyone.filter((i) => values[i] != null && laneOf(i) >= 0);
  const boxes = lanes.map((_, lane) => box(inLane.filter((i) => laneOf(i) === lane && !scans.excluded[i]).map((i) => values[i])));
  const spread = Math.min(0.7, 0.3 + total / 2000);
  const points = inLane.map((i) => [laneOf(i) + jitter(i) * spread, values[i], i]);
  const axes = () => ({
    grid: { left: 52, right: 6, top: 8, bottom: named ? 28 : 10 },
    xAxis: axis({
      type: "value", min: -0.5, max: lanes.length - 0.5, splitLine: { show: false },
      axisLabel: { show: named, color: ink("soft"), customValues: lanes.map((_, lane) => lane), formatter: (lane) => lanes[lane] ?? "" },
    }),
    yAxis: axis({
      type: "value", splitNumber: 4, ...ends,
      axisLabel: { color: ink("soft"), fontSize: 11, showMinLabel: !ends, showMaxLabel: !ends },
    }),
  });
  const drawBoxes = () => [{
    id: "boxes", type: "custom", z: 4, zlevel: 0, // without one, ECharts 6.1 warns at every redraw
    silent: true, animation: false, tooltip: { show: false },
    data: boxes.flatMap((one, lane) => one ? [[lane, one.low, one.q1, one.median, one.q3, one.high]] : []),
    encode: { x: 0, y: [1, 5] },
    renderItem: (_, api) => {
      const lane = api.value(0);
      const y = [1, 2, 3, 4, 5].map((place) => api.coord([lane, api.value(place)])[1]);
      const middle = api.coord([lane, 0])[0];
      const half = Math.min(26, Math.abs(api.size([1, 0])[0]) * 0.36);
      const line = (x1, y1, x2, y2, lineWidth) => ({
        type: "line", z2: 1, shape: { x1, y1, x2, y2 }, style: { stroke: ink("ink"), lineWidth },
      });
      return { type: "group", z2: 1, children: [
        line(middle, y[0], middle, y[1], 1), line(middle, y[3], middle, y[4], 1),
        line(middle - half, y[2], middle + half, y[2], 2.5),
        { type: "rect", z2: 1, shape: { x: middle - half, y: y[3], width: 2 * half, height: y[1] - y[3] }, style: { fill: "none", stroke: ink("ink"), lineWidth: 1 } },
      ] };
    },
  }];
  return new Plot(element, title, axes, () => points, drawBoxes);
}

function distribution(name) {
  const { units, title } = data.measures[name];
  const words = title === name ? "" : title;
  const plot = make("div", { class: "plot", "data-measure": name });
  $("panels").append(make("figure", { class: "panel" },
    make("figcaption", { title: words }, make("strong", {}, name), ` ${withUnits(words, units)}`), plot));
  lanesPlot(plot, name, name, protocols, (i) => protocols.indexOf(scans.protocol[i]));
}

// Volumes of one protocol by site, before and after harmonization, on one scale.
function drawHarmonization() {
  const name = $("harmonized-tissue").value;
  const protocol = $("harmonized-protocol").value;
  const after = `${name}_harmonized_mL`;
  const { site } = data.harmonized;
  const own = (i) => scans.protocol[i] === protocol && data.values[after][i] != null;
  const sites = unique(everyone.filter(own).map((i) => site[i]));
  const both = everyone.filter(own).flatMap((i) => [data.values[name][i], data.values[after][i]]);
  const margin = (Math.max(...both) - Math.min(...both)) / 20 || 1;
  const ends = { min: Math.min(...both) - margin, max: Math.max(...both) + margin };
  for (const [id, measure] of [["before", name], ["after", after]]) {
    dropPlots((plot) => plot.element.id === id);
    const title = `${name} by ${data.harmonized.column}, ${id} harmonization`;
    const lane = (i) => (own(i) ? sites.indexOf(site[i]) : -1);
    lanesPlot($(id), title, measure, sites, lane, { named: true, ends });
  }
}

function dropPlots(which) {
  for (const plot of charts.filter(which)) {
    plot.chart?.dispose();
    watcher.unobserve(plot.element);
    charts.splice(charts.indexOf(plot), 1);
  }
}

let shownKind = "tissue";

function drawPanels(kind) {
  shownKind = kind;
  dropPlots((plot) => plot.element.closest("#panels"));
  $("panels").replaceChildren();
  const names = Object.keys(data.measures).filter((name) => data.measures[name].kind === kind
    && new Set(data.values[name]).size > 1);
  names.forEach(distribution);
  if (!names.length) $("panels").append(make("p", {}, "Nothing to show."));
  for (const button of document.querySelectorAll("[data-kind]")) {
    button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
  }
}

function relation() {
  const [across, up] = [$("across").value, $("up").value];
  const named = (name) => withUnits(name, data.measures[name].units);
  const plot = $("relation");
  const points = () => everyone
    .map((i) => [data.values[$("across").value][i], data.values[$("up").value][i], i])
    .filter(([x, y]) => x != null && y != null);
  const axes = () => ({
    grid: { left: 64, right: 16, top: 32, bottom: 48 },
    xAxis: axis({ type: "value", name: named($("across").value), nameLocation: "middle", nameGap: 30 }),
    yAxis: axis({ type: "value", name: named($("up").value), nameTextStyle: { color: ink("soft"), align: "left" } }),
  });
  const known = charts.find((one) => one.element === plot);
  const title = `${up} by ${across}`;
  if (known) { known.title = title; known.clearBrush(); known.refresh(); } else new Plot(plot, title, axes, points);
}

let drawn = null;
function drawCharts() {
  for (const plot of charts) if (plot !== state.brushed?.plot && drawn !== state.brushed?.plot) plot.clearBrush();
  if (!state.brushed && drawn) drawn.clearBrush();
  drawn = state.brushed?.plot ?? null;
  for (const plot of charts) plot.refresh();
}

function lit(i, except) {
  if (litScan === i) return;
  litScan = i;
  for (const element of document.querySelectorAll("[data-scan]")) {
    element.classList.toggle("lit", i != null && element.dataset.scan === scans.name[i]);
  }
  requestAnimationFrame(() => { for (const plot of charts) if (plot !== except) plot.light(); });
}
