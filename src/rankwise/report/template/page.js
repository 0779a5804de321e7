"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 600px)");
  const byId = (id) => document.getElementById(id);

  // ---------------------------------------------------------------- look

  function look() {
    const style = getComputedStyle(document.documentElement);
    const [ink, grid, paper] = ["--ink", "--grid", "--panel"].map((name) => style.getPropertyValue(name).trim());
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true };
    return { ink, grid, paper, axis };
  }

  const NARROWEST = 95; // pixels of a column that its module's name fits into

  /** The layout of a figure in the page's colours; under a finger there is nothing to drag. */
  function dressed({ height, ...layout }, onEnd) {
    const { ink, grid, paper, axis } = look();
    return {
      ...layout,
      autosize: true,
      dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: narrow.matches ? 11 : 12, family: getComputedStyle(document.body).fontFamily },
      margin: { l: 48, r: 12, t: 8, b: layout.xaxis.side === "top" ? 8 : 40 },
      hoverlabel: { bgcolor: paper, bordercolor: grid, font: { color: ink } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      xaxis: { ...axis, ...layout.xaxis, tickangle: onEnd ? -90 : 0 },
      yaxis: { ...axis, ...layout.yaxis },
    };
  }

  /** A heatmap in the width there is: narrow columns have their names on end, in one line; on a phone its bar lies below. */
  function fitted(trace, onEnd) {
    if (trace.type !== "heatmap") return trace;
    const { colorbar } = trace;
    const below = { orientation: "h", y: -0.02, yanchor: "top", thickness: 10, title: { ...colorbar.title, side: "bottom" } };
    const x = onEnd ? trace.x.map((name) => name.replaceAll("<br>", "")) : trace.x;
    return { ...trace, x, colorbar: narrow.matches ? { ...colorbar, ...below } : colorbar };
  }

  const settings = { responsive: true, displayModeBar: false, displaylogo: false };

  function draw(id, { traces, layout }) {
    const place = byId(id);
    const isMap = traces[0].type === "heatmap";
    const onEnd = isMap && place.clientWidth / traces[0].x.length < NARROWEST;
    if (isMap) place.style.height = `${layout.height + (onEnd ? 60 : 0) + (narrow.matches ? 50 : 0)}px`;
    return Plotly.newPlot(place, traces.map((trace) => fitted(trace, onEnd)), dressed(layout, onEnd), settings);
  }

  // ---------------------------------------------------------------- the rank map and its slider

  const slider = byId("rank-map-step");
  let map = report.maps[0];
  let shown = -1;

  const frameAt = (step) => map.frames.findLastIndex((frame) => frame.step <= step);

  function showStep() {
    const step = Number(slider.value);
    const at = Math.max(0, frameAt(step));
    const frame = map.frames[at];
    const words = `step ${step.toLocaleString("en")} of ${map.total.toLocaleString("en")}: ${frame.label}`;
    byId("rank-map-now").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    if (at !== shown) Plotly.restyle("rank-map", { z: [frame.z], text: [frame.text] });
    shown = at;
  }

  async function showMap() {
    byId("rank-map-title").textContent = map.chart.title;
    byId("rank-map-note").textContent = map.chart.note;
    byId("rank-map-says").textContent = map.chart.says;
    slider.max = map.end;
    slider.step = Math.max(1, Math.round(map.end / 200)); // the arrow keys walk through a run in 200 steps
    slider.value = map.end;
    shown = -1;
    await draw("rank-map", map.chart);
    showStep();
  }

  function play(button) {
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
      button.setAttribute("aria-pressed", "false");
    };
    button.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (Number(slider.value) >= Number(slider.max) - Number(slider.step)) slider.value = 0;
      button.textContent = "Pause";
      button.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        slider.stepUp();
        showStep();
        if (Number(slider.value) + Number(slider.step) > Number(slider.max)) stop();
      }, 40);
    });
    slider.addEventListener("pointerdown", stop);
    slider.addEventListener("keydown", stop);
  }

  function prepareMap() {
    slider.addEventListener("input", showStep);
    play(byId("rank-map-play"));
    byId("rank-map-run")?.addEventListener("change", (event) => {
      map = report.maps[Number(event.target.value)];
      showMap();
    });
  }

  // ---------------------------------------------------------------- numbers behind a chart

  const flat = (text) => new DOMParser().parseFromString(String(text).replaceAll("<br>", ""), "text/html").body.textContent;

  function numbersOf(id) {
    if (id === "rank-map") {
      const [{ x, y }] = map.chart.traces;
      const rows = map.frames.flatMap((frame) =>
        y.flatMap((row, i) => x.map((column, j) => [frame.step, flat(row), flat(column), frame.text[i][j]])),
      );
      return { columns: ["step", "block", "module", "ranks, frozen"], rows: rows.filter((row) => row[3] !== "") };
    }
    const { traces, layout } = report.charts.find((chart) => chart.id === id);
    if (traces[0].type === "heatmap") {
      const [{ x, y, z }] = traces;
      const rows = y.flatMap((row, i) => x.map((column, j) => [flat(row), flat(column), z[i][j] ?? ""]));
      return { columns: ["block", "module", "step"], rows };
    }
    const spans = traces.some((trace) => trace.error_y);
    const rows = traces.flatMap((trace) =>
      trace.x.map((x, i) => {
        const span = spans ? [trace.y[i] - trace.error_y.arrayminus[i], trace.y[i] + trace.error_y.array[i]] : [];
        return [flat(trace.name), x, trace.y[i], ...span];
      }),
    );
    const columns = ["series", flat(layout.xaxis.title.text), flat(layout.yaxis.title.text) || "value"];
    return { columns: spans ? [...columns, "from", "to"] : columns, rows };
  }

  function asCsv({ columns, rows }) {
    // a text that a spreadsheet would take for a formula gets an apostrophe in front
    const safe = (value) => (typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value));
    const quoted = (value) => (/[",\n\r]/.test(safe(value)) ? `"${safe(value).replaceAll('"', '""')}"` : safe(value));
    return [columns, ...rows].map((row) => row.map(quoted).join(",") + "\n").join("");
  }

  const MOST_ROWS = 500;

  function asTable({ columns, rows }, label) {
    const table = document.createElement("table");
    const line = (cells, kind) => {
      const tr = document.createElement("tr");
      for (const cell of cells) {
        const made = document.createElement(kind);
        if (kind === "th") made.scope = "col";
        made.textContent = typeof cell === "number" ? Number(cell.toPrecision(6)) : cell;
        tr.append(made);
      }
      return tr;
    };
    table.createTHead().append(line(columns, "th"));
    table.createTBody().append(...rows.slice(0, MOST_ROWS).map((row) => line(row, "td")));
    if (rows.length > MOST_ROWS) table.createCaption().textContent = `The first ${MOST_ROWS} of ${rows.length} rows; CSV has all.`;
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", `${label}, as a table`);
    scroll.append(table);
    return scroll;
  }

  function save(name, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content]));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  function button(text, label, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", () => act(made));
    return made;
  }

  function addActions(place) {
    const id = place.dataset.of;
    const title = byId(`${id}-title`).textContent;
    const toggle = (made) => {
      const open = place.querySelector(".scroll");
      open ? open.remove() : place.append(asTable(numbersOf(id), title));
      made.setAttribute("aria-expanded", String(!open));
    };
    const table = button("Table", `Table: ${title}`, toggle);
    table.setAttribute("aria-expanded", "false");
    place.append(
      table,
      button("CSV", `CSV: ${title}`, () => save(`${id}.csv`, asCsv(numbersOf(id)))),
      button("Picture", `Picture: ${title}`, () => Plotly.downloadImage(byId(id), { format: "svg", filename: id })),
    );
  }

  // ---------------------------------------------------------------- the files behind the page

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  }

  function addFiles() {
    const several = new Set(report.bundle.files.map((file) => file.of)).size > 1;
    for (const { of, name, packed } of report.bundle.files) {
      const words = several ? `${of}: ${name}` : name;
      const item = document.createElement("li");
      item.append(button(words, `Download ${words}`, async () => save(several ? `${of}-${name}`.replaceAll("/", "-") : name, await unpacked(packed))));
      byId("files").append(item);
    }
  }

  // ---------------------------------------------------------------- all of it

  const pause = () => new Promise((resolve) => setTimeout(resolve)); // the page answers between two charts

  const told = document.documentElement.dataset; // milliseconds from opening the page to the first screens, and to all

  /** What is on the first screens is drawn first. */
  async function drawAll() {
    delete told.drawn;
    if (map) await showMap();
    for (const chart of report.charts) {
      if (!told.opened && byId(chart.id).getBoundingClientRect().top > 1.5 * innerHeight) told.opened = Math.round(performance.now());
      await pause();
      await draw(chart.id, chart);
    }
    told.opened ??= Math.round(performance.now());
    told.drawn = Math.round(performance.now());
  }

  if (map) prepareMap();
  document.querySelectorAll(".actions").forEach(addActions);
  addFiles();
  let drawing = drawAll();
  for (const query of [dark, narrow]) query.addEventListener("change", () => (drawing = drawing.then(drawAll)));
})();
