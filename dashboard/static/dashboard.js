// Shows the snapshots that the server streams. Every text goes in as textContent.
// @ts-check
import { Chart } from "./chart.js";
import { ago, count, fixed, id, milliseconds, percent, statement, time } from "./format.js";

/** @param {string} name */
const element = (name) => {
  const found = document.getElementById(name);
  if (!found) throw new Error(`the page has no #${name}`);
  return found;
};

/** Write only what changed, so that a selection in the page survives. */
const write = (/** @type {Element} */ target, /** @type {string} */ text) => {
  if (target.textContent !== text) target.textContent = text;
};

/**
 * @typedef {{ text: string, title?: string, code?: boolean, number?: boolean }} Cell
 * @param {string} name
 * @param {Cell[][]} rows
 */
const fill = (name, rows) => {
  const region = element(name);
  region.hidden = rows.length === 0;
  element(`${name}-empty`).hidden = rows.length > 0;
  const body = region.querySelector("tbody");
  if (!body) return;
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, i) => {
    const row = body.rows[i] ?? body.insertRow();
    cells.forEach((cell, j) => {
      const td = row.cells[j] ?? row.insertCell();
      write(td, cell.text);
      td.title = cell.title ?? "";
      td.classList.toggle("number", Boolean(cell.number));
      td.classList.toggle("code", Boolean(cell.code));
    });
  });
};

const name = (/** @type {string} */ full) => ({ text: id(full), title: full, code: true });
const number = (/** @type {string} */ text) => ({ text, number: true });

/** @param {any} network @param {any} snapshot */
const showFigures = (network, snapshot) => {
  write(element("model"), network.target_model);
  write(element("uptime"), ago(network.uptime_s));
  write(element("peer-id"), network.peer_id);
  write(element("tokens-per-s"), fixed(network.tokens_per_s, 1));
  write(element("num-tokens"), count(network.num_tokens));
  write(element("acceptance-length"), fixed(network.acceptance_length, 2));
  write(element("volunteer-share"), percent(network.num_accepted, network.num_tokens));
  write(element("num-accepted"), count(network.num_accepted));
  write(element("engine-busy"), percent(network.engine_busy, 1));
  /** @type {HTMLMeterElement} */ (element("busy-meter")).value = network.engine_busy;
  write(element("num-nodes"), count(snapshot.num_nodes));
  write(element("num-sessions"), count(snapshot.num_sessions));
  write(element("num-restarts"), count(network.num_engine_restarts));
  const address = network.addresses[0];
  write(element("join"), `specedge-node join${address ? ` --coordinator ${address}` : ""}`);
  const body = { model: network.target_model, messages: [{ role: "user", content: "Hello" }] };
  const url = `${location.origin}/v1/chat/completions`;
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  write(element("ask"), `curl ${url} -H 'Content-Type: application/json' -d '${quoted}'`);
};

/** @param {any} network */
const showBenefit = ({ benefit, guesses }) => {
  write(element("benefit"), statement(benefit));
  element("benefit-basis").hidden = !benefit.is_measured;
  /** @type {[string, number][]} */
  const shares = [
    ["volunteers", guesses.num_by_nodes],
    ["n-gram", guesses.num_by_ngram],
    ["the engine's draft model", guesses.num_by_engine],
    ["nobody", guesses.num_by_nobody],
  ];
  const all = shares.reduce((sum, [, num]) => sum + num, 0);
  const twice = guesses.num_by_two ? ` (two of them: ${percent(guesses.num_by_two, all)})` : "";
  const bar = element("shares"), list = element("guesses");
  bar.hidden = list.hidden = all === 0;
  shares.forEach(([who, num], i) => {
    const piece = bar.children[i] ?? bar.appendChild(document.createElement("span"));
    const item = list.children[i] ?? list.appendChild(document.createElement("li"));
    const series = `series-${who === "nobody" ? 7 : i}`;
    piece.className = item.className = series;
    /** @type {HTMLElement} */ (piece).style.flexGrow = String(num);
    write(item, `guessed by ${who} ${percent(num, all)}${i === 0 ? twice : ""}`);
  });
};

/** @param {any} engine */
const showEngine = (engine) => {
  const row = `${(1000 * engine.row_time_s).toFixed(3)} ms`;
  write(element("step-cost"), `${milliseconds(engine.step_time_s)} + ${row} per row`);
  write(element("row-price"), `${fixed(engine.row_price, 3)} tokens`);
  write(element("levels-per-step"), fixed(engine.levels_per_step, 2));
  const rates = engine.ngram.map((/** @type {any} */ rate) =>
    `${percent(rate.hit_rate, 1)} of order ${rate.order}`);
  write(element("ngram-rates"), rates.join(", ") || "switched off");
};

/** @param {any} network */
const showNodes = (network) =>
  fill("nodes", network.nodes.map((/** @type {any} */ node) => [
    name(node.peer_id),
    { text: node.draft_model, title: node.draft_model },
    node.rest_s > 0
      ? { ...number(`rests ${ago(node.rest_s)}`), title: "too few of its guesses were used" }
      : number(`${node.num_sessions} / ${node.max_sessions}`),
    number(milliseconds(node.round_trip_s)),
    number(milliseconds(node.level_time_s)),
    number(count(node.num_accepted)),
    number(percent(node.num_accepted, node.num_drafted)),
    number(ago(node.connected_s)),
  ]));

/** @param {any} network */
const showSessions = (network) =>
  fill("sessions", network.sessions.map((/** @type {any} */ session) => [
    name(session.session_id),
    session.nodes.length
      ? { text: session.nodes.map(id).join(", "), title: session.nodes.join(", "), code: true }
      : { text: "engine alone" },
    number(count(session.num_prompt_tokens)),
    number(count(session.num_tokens)),
    number(count(session.num_rounds)),
    number(count(session.num_drafted_rounds)),
    number(count(session.num_accepted)),
    number(ago(session.age_s)),
  ]));

/** @param {any[]} receipts */
const showReceipts = (receipts) =>
  fill("receipts", receipts.map((receipt) => [
    { text: time(receipt.at_s) },
    name(receipt.peer_id),
    number(count(receipt.sequence)),
    number(count(receipt.num_accepted)),
    number(fixed(receipt.micro_credits / 1e6, 2)),
    name(receipt.session_id),
    { text: receipt.digest, code: true },
  ]));

/** @param {"live" | "loading" | "lost"} state @param {string} text */
const showState = (state, text) => {
  element("state").dataset.state = state;
  write(element("state"), text);
};

const script = document.querySelector("script[data-events]");
const { events = "", charts = "" } = /** @type {HTMLElement} */ (script).dataset;
const chart = new Chart(element("chart"), element("legend"), element("chart-empty"));
chart.load(charts.split(" "));

const source = new EventSource(events);
source.onmessage = (event) => {
  const snapshot = JSON.parse(event.data);
  const network = snapshot.network;
  if (network.engine_is_ready) showState("live", "live");
  else showState("loading", "engine is loading");
  showFigures(network, snapshot);
  showBenefit(network);
  showEngine(network.engine);
  showNodes(network);
  showSessions(network);
  showReceipts(snapshot.receipts);
  chart.show(snapshot.chart);
};
source.onerror = () => {
  showState("lost", "connection lost, trying again");
  // A browser gives up on an answer that is not a stream, such as 503; then it is up to us.
  if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
};
