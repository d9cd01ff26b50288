"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [HEIGHT, WIDTH] = data.picture.grid;
const PATCH = 15; // pixels across of a magnified patch
const MAGNIFIED = 5; // keys whose patches are shown
const SIDE = 900; // pixels of a canvas at least, so that lines are thin
const COLOURS = ["#E69F00", "#56B4E9"];
// magma of matplotlib at sixteen places
const MAGMA = [[0,0,4],[11,9,36],[32,17,75],[59,15,112],[87,21,126],[114,31,129],[140,41,129],
  [168,50,125],[196,60,117],[222,73,104],[241,96,93],[250,127,94],[254,159,109],[254,191,132],
  [253,222,160],[252,253,191]];

let at = [HEIGHT >> 1, WIDTH >> 1]; // the pixel that is asked
let held = false; // whether the pointer no longer moves it
let layer = 0;
const layers = []; // {name, of(mapIndex) -> {pixels, bar}}
const views = []; // {canvas, role, map}

/* Unpacking */

async function unpacked(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function readPicture(p) {
  const [height, width] = p.shape, size = height * width, steps = await unpacked(p.pixels);
  const image = new ImageData(width, height);
  for (let c = 0; c < 3; c++)
    for (let y = 0; y < height; y++)
      for (let x = 0, sum = 0; x < width; x++) {
        sum = (sum + steps[c * size + y * width + x]) & 255;
        image.data[4 * (y * width + x) + c] = sum;
      }
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
  return {grid: p.grid, canvas: painted(image), image};
}

async function readMap(m) {
  const size = m.grid[0] * m.grid[1], all = size * m.count;
  const bytes = await unpacked(m.keys), halves = await unpacked(m.weights);
  const keys = new Int32Array(all), bits = new Uint32Array(all);
  for (let t = 0; t < m.count; t++)
    for (let i = t * size, sum = 0; i < (t + 1) * size; i++) {
      sum = (sum + (bytes[i] | bytes[all + i] << 8 | bytes[2 * all + i] << 16 | bytes[3 * all + i] << 24)) | 0;
      keys[i] = sum;
      bits[i] = (halves[i] | halves[all + i] << 8) << 16;
    }
  return {...m, size, keys, weights: new Float32Array(bits.buffer)};
}

function painted(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/* What a map says */

function slot(map, [row, column]) {
  const y = Math.min(Math.floor(row / map.step), map.grid[0] - 1);
  const x = Math.min(Math.floor(column / map.step), map.grid[1] - 1);
  return y * map.grid[1] + x;
}

function looks(map, place) {
  const found = [], i = slot(map, place), width = map.keyGrid[1];
  for (let t = 0; t < map.count; t++) {
    const key = map.keys[t * map.size + i], weight = map.weights[t * map.size + i];
    if (key >= 0) found.push({key, weight, row: Math.floor(key / width), column: key % width});
  }
  return found;
}

function shownShare(map, i) {
  let sum = 0;
  for (let t = 0; t < map.count; t++) sum += map.weights[t * map.size + i];
  return sum;
}

function difference(a, b, place) { // half the sum of differences of the weights shown
  const weights = new Map();
  for (const x of looks(a, place)) weights.set(x.key, x.weight);
  for (const x of looks(b, place)) weights.set(x.key, (weights.get(x.key) || 0) - x.weight);
  let sum = 0;
  for (const w of weights.values()) sum += Math.abs(w);
  return sum / 2;
}

/* Layers */

function magma(share) {
  const x = Math.min(Math.max(share, 0), 1) * (MAGMA.length - 1), i = Math.min(Math.floor(x), 14);
  return MAGMA[i].map((c, j) => c + (x - i) * (MAGMA[i + 1][j] - c));
}

function heat(grid, share) { // share(i): 0 to 1, NaN for nothing
  const image = new ImageData(grid[1], grid[0]);
  for (let i = 0; i < grid[0] * grid[1]; i++) {
    const s = share(i);
    image.data.set(Number.isNaN(s) ? [128, 128, 128, 255] : [...magma(s), 255], 4 * i);
  }
  return painted(image);
}

function displacement(down, right, reach) { // colours of plots.match_field: OKLCh to sRGB
  const length = Math.log1p(Math.hypot(down, right)) / Math.log1p(reach);
  const angle = Math.atan2(-down, right);
  const lightness = 0.97 - 0.32 * length, chroma = 0.16 * length ** 0.7;
  const a = chroma * Math.cos(angle), b = chroma * Math.sin(angle);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3;
  return [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    0.0041960863 * -l - 0.7034186147 * m + 1.7076147010 * s].map(v => {
      const x = Math.min(Math.max(v, 0), 1);
      return 255 * (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055);
    });
}

function matches(map) {
  const [rows, columns] = map.grid, [high, wide] = map.keyGrid;
  const image = new ImageData(columns, rows), reach = Math.hypot(high, wide);
  for (let i = 0; i < map.size; i++) {
    const key = map.keys[i], row = Math.floor(i / columns), column = i % columns;
    const home = [Math.floor((row + .5) * high / rows), Math.floor((column + .5) * wide / columns)];
    const colour = key < 0 ? [153, 153, 153]
      : displacement(Math.floor(key / wide) - home[0], key % wide - home[1], reach);
    image.data.set([...colour, 255], 4 * i);
  }
  return painted(image);
}

function once(make) { // a layer is drawn when it is first looked at
  const made = new Map();
  return k => { if (!made.has(k)) made.set(k, make(k)); return made.get(k); };
}

function bar(low, high, log = false) {
  return {low, high, value: share => log ? low * (high / low) ** share : low + share * (high - low)};
}

async function makeLayers(maps, ground) {
  layers.push({name: "photograph", label: "the picture", of: () => ({pixels: ground.canvas})});
  layers.push({
    name: "matches", of: once(k => ({pixels: matches(maps[k])})),
    label: "displacement to the strongest key: hue its direction, strength its length; white: none",
  });
  layers.push({
    name: "weight shown", label: "share of a pixel's weight that the keys shown here hold",
    of: once(k => ({pixels: heat(maps[k].grid, i => shownShare(maps[k], i)), bar: bar(0, 1)})),
  });
  for (const [name, x] of Object.entries(data.layers)) {
    const levels = await unpacked(x.levels);
    const share = i => levels[i] ? (levels[i] - 1) / 254 : NaN;
    layers.push({
      name, label: x.label,
      of: once(() => ({pixels: heat(x.grid, share), bar: bar(x.low, x.high, x.log),
        share: ([row, column]) => share(Math.min(row, x.grid[0] - 1) * x.grid[1] + column)})),
    });
  }
  if (maps.length === 2) {
    const [a, b] = maps, step = Math.max(a.step, b.step);
    const grid = [Math.ceil(HEIGHT / step), Math.ceil(WIDTH / step)];
    const value = i => difference(a, b,
      [Math.floor(i / grid[1]) * step, i % grid[1] * step].map((p, j) => Math.min(p, [HEIGHT, WIDTH][j] - 1)));
    layers.push({
      name: "difference", label: "half the sum of differences of the weights shown: 0 alike, 1 no key in common",
      of: once(() => ({pixels: heat(grid, value), bar: bar(0, 1)})),
    });
  }
}

/* Drawing */

function draw(view, maps, pictures) {
  const picture = view.role === "key" ? pictures.keys : pictures.ground;
  const {canvas} = view, pen = canvas.getContext("2d"), scale = canvas.width / picture.grid[1];
  const onQueries = view.role !== "key";
  const pixels = onQueries || layer === 0
    ? (layer === 0 ? picture.canvas : layers[layer].of(view.map).pixels) : picture.canvas;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(pixels, 0, 0, canvas.width, canvas.height);
  const centre = ([row, column]) => [(column + .5) * scale, (row + .5) * scale];
  const [x, y] = centre(at);
  if (view.role !== "query") {
    const found = looks(maps[view.map], at), most = Math.max(...found.map(f => Math.abs(f.weight)), 1e-300);
    for (const f of found.reverse()) {
      const [kx, ky] = centre([f.row, f.column]), size = Math.sqrt(Math.abs(f.weight) / most);
      pen.globalAlpha = .35 + .65 * size;
      if (view.role === "both") line(pen, [x, y], [kx, ky], COLOURS[view.map], 1 + 2 * size);
      dot(pen, kx, ky, 3 + 5 * size, f.weight < 0 ? "#0072B2" : COLOURS[view.map]);
    }
    pen.globalAlpha = 1;
  }
  if (onQueries) cross(pen, x, y, held);
}

function line(pen, [x0, y0], [x1, y1], colour, width) {
  const bend = Math.hypot(x1 - x0, y1 - y0) * .12;
  const angle = Math.atan2(y1 - y0, x1 - x0) - Math.PI / 2;
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.quadraticCurveTo((x0 + x1) / 2 + bend * Math.cos(angle), (y0 + y1) / 2 + bend * Math.sin(angle), x1, y1);
  for (const [ink, extra] of [["#000", 2], [colour, 0]]) {
    [pen.strokeStyle, pen.lineWidth] = [ink, width + extra];
    pen.stroke();
  }
}

function dot(pen, x, y, radius, colour) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [colour, "#000", 1.5];
  pen.fill();
  pen.stroke();
}

function cross(pen, x, y, ring) {
  for (const [ink, width] of [["#000", 5], ["#fff", 2]]) {
    [pen.strokeStyle, pen.lineWidth] = [ink, width];
    pen.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 4 * dx, y + 4 * dy);
      pen.lineTo(x + 13 * dx, y + 13 * dy);
    }
    pen.stroke();
    if (ring) { pen.beginPath(); pen.arc(x, y, 16, 0, 2 * Math.PI); pen.stroke(); }
  }
}

function patch(picture, [row, column], name) {
  const figure = document.createElement("figure"), canvas = document.createElement("canvas");
  const factor = picture.image.width / picture.grid[1];
  [canvas.width, canvas.height] = [PATCH * 6, PATCH * 6];
  const pen = canvas.getContext("2d"), half = PATCH / 2;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture.canvas, (column + .5) * factor - half, (row + .5) * factor - half, PATCH, PATCH,
    0, 0, canvas.width, canvas.height);
  const caption = document.createElement("figcaption");
  caption.textContent = name;
  figure.append(canvas, caption);
  return figure;
}

function describe(maps, pictures) {
  const details = document.getElementById("details");
  details.replaceChildren();
  const sayings = [];
  maps.forEach((map, k) => {
    const found = looks(map, at), box = document.createElement("div");
    box.className = "map";
    const head = document.createElement("h2");
    head.textContent = maps.length > 1 ? map.name : "The pixel and its strongest keys";
    const row = document.createElement("div");
    row.className = "patches";
    const query = patch(pictures.ground, at, "the pixel");
    query.className = "query";
    row.append(query);
    for (const f of found.slice(0, MAGNIFIED))
      row.append(patch(pictures.keys || pictures.ground, [f.row, f.column],
        `(${f.row}, ${f.column}) ${brief(f.weight)}`));
    const note = document.createElement("p");
    note.className = "help";
    const holders = found.length === 1 ? "1 key shown holds" : `${found.length} keys shown hold`;
    note.textContent = found.length
      ? `${holders} ${brief(shownShare(map, slot(map, at)))} of its weight.`
      : "It looks at no key.";
    if (map.step > 1) note.textContent += ` One pixel in ${map.step} x ${map.step} is known; the nearest is shown.`;
    box.append(head, row, note);
    details.append(box);
    const best = found[0];
    sayings.push(best ? `${maps.length > 1 ? map.name + ": " : ""}looks at (${best.row}, ${best.column}), weight ${brief(best.weight)}` : "looks at nothing");
  });
  if (maps.length === 2) sayings.push(`difference ${brief(difference(maps[0], maps[1], at))}`);
  const shown = layers[layer].of(0);
  const value = shown.share && shown.share(at);
  if (value !== undefined && !Number.isNaN(value)) sayings.push(`${layers[layer].name} ${brief(shown.bar.value(value))}`);
  document.getElementById("place").textContent = `Pixel (${at[0]}, ${at[1]}): ${sayings.join("; ")}`;
}

function brief(x) {
  return x === 0 ? "0" : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5 ? String(Number(x.toPrecision(2))) : x.toExponential(1);
}

function legend() {
  const place = document.getElementById("legend"), {label, of} = layers[layer], scale = of(0).bar;
  place.replaceChildren(label);
  if (!scale) return;
  const image = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) image.data.set([...magma(i / 255), 255], 4 * i);
  const ends = document.createElement("span");
  for (const share of [0, .5, 1]) {
    const mark = document.createElement("span");
    mark.textContent = brief(scale.value(share));
    ends.append(mark);
  }
  place.append(painted(image), ends);
}

/* Hands */

function start(maps, pictures) {
  const stage = document.getElementById("stage"), nav = document.getElementById("layers");
  const roles = pictures.keys
    ? [{role: "query", map: 0, words: "queries"}, ...maps.map((m, k) => ({role: "key", map: k, words: `keys: ${m.name}`}))]
    : maps.map((m, k) => ({role: "both", map: k, words: maps.length > 1 ? m.name : ""}));
  let waiting = false;
  const refresh = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      for (const view of views) draw(view, maps, pictures);
      describe(maps, pictures);
    });
  };
  const link = () => history.replaceState(null, "", `#${at[0]},${at[1]},${encodeURIComponent(layers[layer].name)}`);
  const go = (row, column) => {
    at = [Math.min(Math.max(row, 0), HEIGHT - 1), Math.min(Math.max(column, 0), WIDTH - 1)];
    refresh();
  };
  const choose = k => {
    layer = k;
    [...nav.children].forEach((b, i) => b.setAttribute("aria-pressed", String(i === k)));
    legend();
    refresh();
  };
  for (const {role, map, words} of roles) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const grid = role === "key" ? pictures.keys.grid : [HEIGHT, WIDTH];
    const scale = Math.max(1, Math.ceil(SIDE / Math.max(...grid)));
    [canvas.height, canvas.width] = [grid[0] * scale, grid[1] * scale];
    canvas.style.aspectRatio = `${grid[1]} / ${grid[0]}`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Picture, ${grid[0]} by ${grid[1]} pixels ${words}`);
    figure.append(canvas);
    if (words) {
      const caption = document.createElement("figcaption");
      caption.textContent = words;
      figure.append(caption);
    }
    if (role !== "key") {
      canvas.tabIndex = 0;
      const place = event => {
        const box = canvas.getBoundingClientRect();
        const shown = Math.min(box.width / grid[1], box.height / grid[0]); // object-fit: contain
        return [Math.floor((event.clientY - box.top) / shown), Math.floor((event.clientX - box.left) / shown)];
      };
      canvas.addEventListener("pointermove", e => { if (!held || e.buttons) go(...place(e)); });
      canvas.addEventListener("pointerdown", e => {
        held = e.pointerType === "mouse" ? !held : true;
        go(...place(e));
        link();
      });
    }
    stage.append(figure);
    views.push({canvas, role, map});
  }
  layers.forEach(({name}, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => { choose(k); link(); });
    nav.append(button);
  });
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const far = event.shiftKey ? 10 : 1;
    const moves = {ArrowUp: [-far, 0], ArrowDown: [far, 0], ArrowLeft: [0, -far], ArrowRight: [0, far]};
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (moves[key]) {
      held = true;
      go(at[0] + moves[key][0], at[1] + moves[key][1]);
    } else if (key === "l") choose((layer + (event.shiftKey ? layers.length - 1 : 1)) % layers.length);
    else if (key === "g" && !pictures.keys) {
      const best = looks(maps[0], at)[0];
      if (best) { held = true; go(best.row, best.column); }
    } else if (key === "Enter" && event.target.tagName !== "BUTTON") { held = !held; refresh(); } else return;
    event.preventDefault();
    link();
  });
  const follow = () => {
    const [row, column, name] = location.hash.slice(1).split(",");
    const named = name === undefined ? -1 : layers.findIndex(l => l.name === decodeURIComponent(name));
    if (/^\d+$/.test(row) && /^\d+$/.test(column)) { held = true; go(Number(row), Number(column)); }
    choose(named < 0 ? layer : named);
  };
  addEventListener("hashchange", follow);
  follow();
}

(async () => {
  try {
    const ground = await readPicture(data.picture);
    const keys = data.keys && await readPicture(data.keys);
    const maps = await Promise.all(data.maps.map(readMap));
    await makeLayers(maps, ground);
    start(maps, {ground, keys});
  } catch (error) {
    document.getElementById("place").textContent =
      `This browser cannot read the page (${error.message}); it needs DecompressionStream, in browsers since 2023.`;
  }
})();
