// The dashboard: puts what `live` knows on the page. All text goes in as textContent, as visitors choose their URLs.

import { Chart } from './chart.js';
import { Live, RANGES, TIME_ZONE } from './live.js';

const METRICS = { page_views: 'page views', unique_visitors: 'visitors', sessions: 'sessions' };
const STATUS = { connecting: 'Connecting', live: 'Live', reconnecting: 'Reconnecting', stale: 'Stale' };
// A connection that is back within this time is not worth a sentence.
const GRACE = 4000;

const root = document.documentElement;
const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat();
const percent = new Intl.NumberFormat(undefined, { style: 'percent', maximumFractionDigits: 1 });
const roundPercent = new Intl.NumberFormat(undefined, { style: 'percent' });
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });

function put(id, text) {
  const node = $(id);
  // Screen readers speak up at every write to a status.
  if (node.textContent !== text) node.textContent = text;
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// ---- theme

const night = matchMedia('(prefers-color-scheme: dark)');
// Storage may be forbidden; the choice then lasts as long as the page.
let chosenTheme = null;
try { chosenTheme = localStorage.getItem('tidegate.theme'); } catch { /* forbidden */ }

function dress() {
  const theme = chosenTheme ?? (night.matches ? 'dark' : 'light');
  root.dataset.theme = theme;
  $('theme')?.setAttribute('aria-pressed', String(theme === 'dark'));
}

function switchTheme() {
  chosenTheme = root.dataset.theme === 'dark' ? 'light' : 'dark';
  try { localStorage.setItem('tidegate.theme', chosenTheme); } catch { /* forbidden */ }
  dress();
}

dress();
night.addEventListener('change', dress);
$('theme').addEventListener('click', switchTheme);

// ---- what is shown: site, range and metric stand in the address, so that it can be sent to someone

const choice = {};

function readAddress() {
  const query = new URLSearchParams(location.search);
  choice.site = query.get('site') || 'default';
  choice.range = Object.hasOwn(RANGES, query.get('range')) ? query.get('range') : 'day';
  choice.metric = Object.hasOwn(METRICS, query.get('metric')) ? query.get('metric') : 'page_views';
}

function writeAddress() {
  history.replaceState(null, '', `?${new URLSearchParams(choice)}`);
}

let live;
let peak;
let lost = 0;

function start() {
  live?.close();
  peak = 10;
  for (const name of Object.keys(shown)) delete shown[name];
  live = new Live({ ...choice, changed: schedule });
  $('site').value = choice.site;
  for (const input of $('ranges').elements) input.checked = input.value === choice.range;
  schedule();
}

let scheduled = 0;
function schedule() {
  scheduled ||= requestAnimationFrame(() => {
    scheduled = 0;
    render(live.view());
  });
}

// ---- rendering

const chart = new Chart({ plot: $('plot'), tip: $('tip'), spoken: $('spoken') });

function render(view) {
  const empty = view.known === false && view.summary && view.status !== 'connecting';
  $('setup').hidden = !empty;
  $('report').hidden = Boolean(empty);
  $('lists').hidden = Boolean(empty);
  document.body.classList.toggle('waiting', !view.summary);
  renderConnection(view);
  renderTide(view);
  for (const button of document.querySelectorAll('[data-metric]')) {
    button.setAttribute('aria-pressed', String(button.dataset.metric === choice.metric));
  }
  if (empty) renderSetup();
  if (view.summary && !empty) {
    renderFigures(view.summary);
    for (const [name, items] of Object.entries(view.lists)) renderList(name, items);
    put('caption', `${METRICS[choice.metric]}, ${view.range.title}, by ${view.range.interval} · ${TIME_ZONE.replaceAll('_', ' ')}`);
  }
  if (view.points && !empty) {
    chart.show({ points: view.points, interval: view.range.interval, metric: METRICS[choice.metric], title: view.range.title });
  }
  if (view.summary && view.visitorsNow !== undefined) root.dataset.ready = 'yes';
}

function renderConnection({ status, trouble, asOf, summary }) {
  $('connection').dataset.status = status;
  put('status', STATUS[status]);
  const through = asOf ? clock.format(new Date(asOf.time)) : '';
  put('as-of', through && `counted through ${through}`);

  lost = status === 'live' ? 0 : lost || Date.now();
  const away = lost && Date.now() - lost > GRACE;
  const notice = $('notice');
  if (trouble) put('notice', `Tidegate does not answer for this site: ${trouble}`);
  else if (away && (summary || through)) {
    put('notice', `No connection to Tidegate right now. The numbers stand as counted through ${through} and catch up by themselves.`);
  } else if (away) put('notice', 'Tidegate does not answer yet. This page keeps trying by itself.');
  notice.hidden = !trouble && !away;
}

function renderTide({ visitorsNow, minuteViews, hourViews }) {
  const known = visitorsNow !== undefined;
  const text = known ? number.format(visitorsNow) : '–';
  put('visitors-now', text);
  $('visitors-now').classList.toggle('long', text.length > 4);
  put('minute-views', minuteViews === undefined ? '–' : number.format(minuteViews));
  put('hour-views', hourViews === undefined ? '–' : number.format(hourViews));
  peak = Math.max(peak, visitorsNow ?? 0);
  // The crest stays below the figure's top, and some water stays at ebb.
  const level = known ? 0.08 + 0.62 * (visitorsNow / peak) : 0;
  $('water').style.transform = `translateY(${(100 * (1 - level)).toFixed(1)}%)`;
  document.title = known ? `${text} now · ${choice.site} · Tidegate` : `${choice.site} · Tidegate`;
}

function renderFigures(summary) {
  put('page-views', number.format(summary.page_views));
  put('bots', number.format(summary.bots));
  const views = summary.sessions ? summary.page_views / summary.sessions : 0;
  put('page-views-note', views ? `${views.toFixed(1)} per session` : '');
  const bound = summary.error_bound;
  const note = summary.exact ? 'exact' : bound ? `± ${percent.format(bound)}` : 'approximate';
  for (const [id, value] of [['visitors', summary.unique_visitors], ['sessions', summary.sessions]]) {
    const node = $(id);
    const text = number.format(value);
    const about = summary.exact ? '' : '≈ ';
    if (node.textContent !== about + text) node.replaceChildren(make('span', 'about', about), text);
    put(`${id}-note`, note);
  }
  const [reason] = Object.entries(summary.bot_reasons ?? {}).sort((a, b) => b[1] - a[1]);
  put('bots-note', reason?.[1] ? `mostly ${reason[0].replaceAll('_', ' ')}` : 'not in the numbers');
}

// The counts each list showed last, to tell which row moved.
const shown = {};

const LABELS = {
  pages: pageName,
  referrers: (name) => [make('span', '', name || 'Direct')],
  events: (name) => [make('span', '', name)],
  products: (name) => [make('span', '', name)],
};

// Anything else (a bare path, an app's own scheme) is shown as it came.
const WEB_PAGE = /^https?:\/\/([^/?#]+)(.*)$/is;

/** The path is what tells pages of one shop apart; the host is said, quietly, only where there are several. */
function pageName(url, hosts) {
  const [, host, path] = url.match(WEB_PAGE) ?? [null, '', url];
  return [...(hosts.size > 1 && host ? [make('span', 'host', host)] : []), make('span', '', path || '/')];
}

function hostsOf(items) {
  return new Set(items.map(({ label }) => label.match(WEB_PAGE)?.[1] ?? ''));
}

function renderList(name, items) {
  const list = $(name);
  const before = shown[name]?.range === choice.range ? shown[name].counts : new Map();
  shown[name] = { range: choice.range, counts: new Map(items.map(({ label, count }) => [label, count])) };
  if (!items.length) {
    list.replaceChildren(make('li', 'none', `No ${name === 'pages' ? 'views' : name} in the ${RANGES[choice.range].title}.`));
    return;
  }
  const hosts = name === 'pages' ? hostsOf(items) : null;
  const most = items[0].count;
  const rows = new Map([...list.children].map((row) => [row.dataset.label, row]));
  const wanted = items.map(({ label, count, share }) => {
    // How many hosts there are is part of what a page's row says.
    const id = `${hosts?.size > 1 ? '+' : '-'}${label}`;
    const row = rows.get(id) ?? makeRow(id, label, LABELS[name](label, hosts));
    const [bar, , counted, shared] = row.children;
    bar.style.width = `${(100 * count) / most}%`;
    const text = number.format(count);
    if (before.get(label) < count) row.classList.add('moved');
    if (counted.textContent !== text) counted.textContent = text;
    shared.textContent = roundPercent.format(share);
    return row;
  });
  // Rows that keep their place are not touched, so that a selection or a hover in them lives on.
  wanted.forEach((row, i) => {
    if (list.children[i] !== row) list.insertBefore(row, list.children[i] ?? null);
  });
  while (list.children.length > wanted.length) list.lastChild.remove();
}

// What is hot is the shop's, of the last 24 hours and 7 days, whatever range and site are shown.
async function refreshProducts() {
  if (document.hidden) return;
  try {
    const answer = await fetch('/api/v1/products/hot?limit=8');
    if (!answer.ok) return;
    const hot = (await answer.json()).data.filter(({ score }) => score > 0);
    const all = hot.reduce((sum, { score }) => sum + score, 0);
    $('products-card').hidden = !hot.length;
    if (!hot.length) return;
    renderList('products', hot.map(({ product_id: id, product, score }) => (
      { label: product ? `${product.name} · ${id}` : id, count: score, share: score / all })));
  } catch {
    // That there is no connection is told where it belongs.
  }
}

function makeRow(id, label, name) {
  const row = make('li', 'row');
  row.dataset.label = id;
  const text = make('span', 'name');
  text.title = label;
  text.append(...name);
  row.append(make('span', 'share'), text, make('span', 'count'), make('span', 'percent'));
  row.addEventListener('animationend', () => row.classList.remove('moved'));
  return row;
}

function renderSetup() {
  const { site } = choice;
  const named = site !== 'default';
  put('setup-site', named ? site : 'your shop');
  put('setup-tag', `<script defer src="${location.origin}/tracker.js"${named ? ` data-site="${site}"` : ''}></script>`);
  const event = JSON.stringify({ ...(named && { site }), url: '/hello' });
  put('setup-curl', `curl ${location.origin}/api/v1/events -H 'content-type: application/json' -d '${event}'`);
}

// ---- controls

$('ranges').addEventListener('change', ({ target }) => {
  choice.range = target.value;
  writeAddress();
  live.choose({ range: choice.range });
});

for (const button of document.querySelectorAll('button[data-metric]')) {
  button.addEventListener('click', () => {
    choice.metric = button.dataset.metric;
    writeAddress();
    live.choose({ metric: choice.metric });
  });
}

function chooseSite(event) {
  event.preventDefault();
  const site = $('site').value.trim();
  if (!site || site === choice.site || !$('site-form').checkValidity()) return;
  choice.site = site;
  history.pushState(null, '', `?${new URLSearchParams(choice)}`);
  delete root.dataset.ready;
  start();
}

$('site-form').addEventListener('submit', chooseSite);
$('site').addEventListener('change', chooseSite);

for (const button of document.querySelectorAll('.copy')) {
  // The clipboard is open to secure pages only; elsewhere the text can still be selected.
  button.hidden = !navigator.clipboard;
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText($(button.dataset.copies).textContent);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1600);
  });
}

addEventListener('popstate', () => {
  readAddress();
  start();
});

readAddress();
start();
refreshProducts();
setInterval(refreshProducts, 1000);
