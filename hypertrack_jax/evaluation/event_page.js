// What plotly's page lacks: tracks by momentum and origin on and off, words beside the pointer, and
// the space of a large event, which is drawn when it is asked for. `page` comes from event_page.py.
const plot = document.getElementById("{plot_id}");
const KINDS = { i1: Int8Array, i4: Int32Array, i8: BigInt64Array, f4: Float32Array, f8: Float64Array };
function unpack(packed) {
  const text = atob(packed.bdata), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new KINDS[packed.dtype](bytes.buffer);
}
const read = (array) => (array?.bdata ? unpack(array) : array);
// Nothing is unpacked before it is needed, so the page opens sooner.
const once = (make) => { let made; return () => (made ??= make()); };
const columns = (table) => once(() =>
  Object.fromEntries(Object.entries(table).map(([name, packed]) => [name, unpack(packed)])));
const hits = columns(page.hits), particles = columns(page.particles);
const layers = page.layers.map(columns);
const full = plot.data.map((trace) =>
  once(() => ({ x: read(trace.x), y: read(trace.y), z: read(trace.z) })));
const isSpace = (trace) => trace.type === "scatter3d";

// Tracks whose box is not ticked get gaps in place of points.
const hidden = new Set();
function show() {
  for (const [inSpace, axes] of [[false, ["x", "y"]], [true, ["x", "y", "z"]]]) {
    const which = plot.data.flatMap((trace, i) => (isSpace(trace) === inSpace ? [i] : []));
    const shown = (i, axis) => {
      const { group } = layers[plot.data[i].meta]();
      return full[i]()[axis].map((value, k) => (hidden.has(group[k]) ? NaN : value));
    };
    const change = axes.map((axis) => [axis, which.map((i) => shown(i, axis))]);
    if (which.length) Plotly.restyle(plot, Object.fromEntries(change), which);
  }
}

// Space has the points of both planes: x and y of the one, z of the other. A track is a line alone.
function draw() {
  const planes = (axis) => full.filter((_, i) => (plot.data[i].xaxis ?? "x") === axis);
  const crossed = planes("x"), along = planes("x2");
  const added = crossed.map((plane, number) => {
    const { name, legendgroup, meta, visible, line, marker, hoverinfo } = plot.data[full.indexOf(plane)];
    const points = once(() => ({ x: along[number]().x, y: plane().x, z: plane().y }));
    full.push(points);
    return {
      ...{ name, legendgroup, meta, visible, line, marker, hoverinfo, ...points() },
      ...{ type: "scatter3d", mode: page.modes[meta], showlegend: false },
    };
  });
  return Plotly.addTraces(plot, added).then(() => hidden.size && show());
}

const bar = document.createElement("div");
bar.id = "choice";
const tick = (text, groups) => {
  const label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = true;
  box.onchange = () => {
    hidden.clear();
    for (const [other, of] of boxes) if (!other.checked) of.forEach((group) => hidden.add(group));
    show();
  };
  boxes.push([box, groups]);
  label.append(box, text);
  bar.append(label);
};
const boxes = [];
for (const [text, groups] of page.choices) groups ? tick(text, groups) : bar.append(text);
if (page.isLarge) {
  const button = document.createElement("button");
  button.textContent = "draw in space";
  button.onclick = () => {
    button.disabled = true;
    button.textContent = "drawing ...";
    setTimeout(() => draw().then(() => button.remove()), 50);
  };
  bar.append(button);
}
plot.parentNode.insertBefore(bar, plot);

const words = document.createElement("div");
words.id = "words";
document.body.append(words);
addEventListener("mousemove", ({ clientX, clientY }) => {
  const isRight = clientX > innerWidth / 2;
  words.style.cssText += `;top:${clientY + 12}px;left:${isRight ? "auto" : `${clientX + 12}px`}` +
    `;right:${isRight ? `${innerWidth - clientX + 12}px` : "auto"}`;
});
function told(hit) {
  const { hit_id, particle, track, membership } = hits(), { particle_id, pt, radius } = particles();
  const lines = [`hit ${hit_id[hit]}`], of = particle[hit];
  if (of >= 0) {
    lines.push(`particle ${particle_id[of]}`);
    lines.push(`pT ${pt[of].toFixed(2)} GeV, begins at r = ${radius[of].toFixed(1)} mm`);
  } else if (page.hasTruth) lines.push("noise");
  const sure = membership ? `, membership ${membership[hit].toFixed(2)}` : "";
  return [...lines, track[hit] >= 0 ? `track ${track[hit]}${sure}` : "in no track"].join("\n");
}
plot.on("plotly_hover", ({ points: [point] }) => {
  const hit = layers[plot.data[point.curveNumber].meta]().hit[point.pointNumber];
  words.textContent = told(hit);
  words.style.display = "block";
});
plot.on("plotly_unhover", () => (words.style.display = "none"));
