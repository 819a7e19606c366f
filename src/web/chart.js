// A bar chart of time buckets: SVG built here, bars kept by their start so that they grow instead of being redrawn.

const SVG = 'http://www.w3.org/2000/svg';
const MARGIN = { top: 14, right: 4, bottom: 26, left: 44 };
const LABEL_WIDTH = 52;

const TICKS = {
  minute: { part: (d) => d.getMinutes(), steps: [1, 2, 5, 10, 15, 30] },
  hour: { part: (d) => d.getHours(), steps: [1, 2, 3, 4, 6, 12] },
};

const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
const dayMonth = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: 'compact', maximumFractionDigits: 1 });

function svg(name, attributes = {}, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** The round step that divides `max` into at most five. */
function niceStep(max) {
  const rough = Math.max(max, 5) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
}

function bucketName(start, interval) {
  if (interval === 'day') return weekday.format(start);
  const end = start + (interval === 'hour' ? 3_600_000 : 60_000);
  return `${clock.format(start)} – ${clock.format(end)}`;
}

export class Chart {
  constructor({ plot, tip, spoken }) {
    Object.assign(this, { plot, tip, spoken });
    this.bars = new Map();
    this.active = null; // start of the bucket that is looked at
    this.root = svg('svg', { 'aria-hidden': 'true' });
    this.grid = this.root.appendChild(svg('g', { class: 'grid' }));
    this.marks = this.root.appendChild(svg('g', { class: 'bars' }));
    this.cursor = this.root.insertBefore(svg('rect', { class: 'cursor', visibility: 'hidden' }), this.marks);
    plot.prepend(this.root);
    new ResizeObserver(() => this.draw()).observe(plot);
    plot.addEventListener('pointermove', (event) => this.look(this.at(event.clientX)));
    plot.addEventListener('pointerdown', (event) => this.look(this.at(event.clientX)));
    plot.addEventListener('pointerleave', () => this.look(null));
    plot.addEventListener('blur', () => this.look(null));
    plot.addEventListener('keydown', (event) => this.key(event));
  }

  /** `points` ([{start, value}], oldest first) of a `metric` named in words, in buckets of `interval`. */
  show({ points, interval, metric, title }) {
    Object.assign(this, { points, interval, metric });
    const total = metric === 'page views' ? `${whole.format(points.reduce((sum, p) => sum + p.value, 0))} in all. ` : '';
    this.plot.setAttribute('aria-label', `${metric}, ${title}, by ${interval}. ${total}Left and right arrow keys read the values.`);
    this.draw();
  }

  draw() {
    const { points } = this;
    const { width, height } = this.plot.getBoundingClientRect();
    if (!points || !width) return;
    const max = Math.max(...points.map((point) => point.value));
    const step = niceStep(max);
    const top = Math.max(step * Math.ceil(max / step), step * 2);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    this.slot = inner.width / points.length;
    const base = MARGIN.top + inner.height;
    const y = (value) => base - (value / top) * inner.height;
    this.root.setAttribute('viewBox', `0 0 ${width} ${height}`);

    this.grid.replaceChildren();
    for (let value = 0; value <= top; value += step) {
      const line = { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value), class: value ? '' : 'base' };
      this.grid.append(
        svg('line', line),
        svg('text', { x: MARGIN.left - 10, y: y(value) + 4, 'text-anchor': 'end' }, short.format(value)),
      );
    }
    for (const { i, text } of this.ticks()) {
      const x = MARGIN.left + (i + 0.5) * this.slot;
      const half = text.length * 3.6;
      const anchor = x + half > width ? 'end' : 'middle';
      this.grid.append(svg('text', { x: anchor === 'end' ? width - 2 : x, y: height - 6, 'text-anchor': anchor }, text));
    }

    const gap = Math.min(6, Math.max(1, this.slot * 0.24));
    const kept = new Set();
    points.forEach(({ start, value }, i) => {
      let bar = this.bars.get(start);
      if (!bar) {
        bar = this.marks.appendChild(svg('rect', { y: base, height: 0 }));
        this.bars.set(start, bar);
      }
      kept.add(start);
      // An empty bucket keeps a hairline on the waterline: nothing happened, but it was counted.
      const tall = value ? Math.max(2, base - y(value)) : 1;
      const last = i === points.length - 1;
      bar.setAttribute('class', (value ? '' : 'empty') + (last ? ' filling' : ''));
      bar.setAttribute('x', MARGIN.left + i * this.slot + gap / 2);
      bar.setAttribute('width', Math.max(1, this.slot - gap));
      bar.setAttribute('rx', Math.min(2.5, tall / 2, this.slot / 4));
      bar.setAttribute('y', base - tall);
      bar.setAttribute('height', tall);
    });
    for (const [start, bar] of this.bars) {
      if (kept.has(start)) continue;
      bar.remove();
      this.bars.delete(start);
    }
    this.bounds = { width, height: inner.height };
    this.point();
  }

  /** Which buckets are named under the axis: round times, as many as fit. */
  ticks() {
    const { points, interval } = this;
    const fits = Math.max(1, Math.ceil(LABEL_WIDTH / this.slot));
    if (interval === 'day') {
      const last = points.length - 1;
      return points.flatMap(({ start }, i) => ((last - i) % fits ? [] : [{ i, text: dayMonth.format(start) }]));
    }
    const { part, steps } = TICKS[interval];
    const step = steps.find((n) => n >= fits) ?? steps.at(-1);
    return points.flatMap(({ start }, i) => (part(new Date(start)) % step ? [] : [{ i, text: clock.format(start) }]));
  }

  at(clientX) {
    if (!this.points) return null;
    const i = Math.floor((clientX - this.plot.getBoundingClientRect().left - MARGIN.left) / this.slot);
    return this.points[i]?.start ?? null;
  }

  key(event) {
    if (!this.points) return;
    const last = this.points.length - 1;
    const i = this.points.findIndex((point) => point.start === this.active);
    const next = {
      ArrowLeft: i < 0 ? last : Math.max(0, i - 1),
      ArrowRight: i < 0 ? last : Math.min(last, i + 1),
      Home: 0,
      End: last,
      Escape: -1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.look(this.points[next]?.start ?? null);
    this.spoken.textContent = next < 0 ? '' : this.words().join(', ');
  }

  look(start) {
    if (start === this.active) return;
    this.active = start;
    this.point();
  }

  words() {
    const point = this.points.find(({ start }) => start === this.active);
    const unit = point.value === 1 ? this.metric.replace(/s$/, '') : this.metric;
    const more = point === this.points.at(-1) ? ' so far' : '';
    return [bucketName(point.start, this.interval), `${whole.format(point.value)} ${unit}${more}`];
  }

  /** Moves cursor and tooltip to the bucket that is looked at. */
  point() {
    const i = this.points?.findIndex(({ start }) => start === this.active) ?? -1;
    this.tip.hidden = i < 0;
    this.cursor.setAttribute('visibility', i < 0 ? 'hidden' : 'visible');
    if (i < 0) return;
    const x = MARGIN.left + i * this.slot;
    this.cursor.setAttribute('x', x);
    this.cursor.setAttribute('y', MARGIN.top);
    this.cursor.setAttribute('width', this.slot);
    this.cursor.setAttribute('height', this.bounds.height);
    const [when, what] = this.words();
    this.tip.children[0].textContent = when;
    this.tip.children[1].textContent = what;
    const wide = this.tip.offsetWidth;
    const left = Math.min(Math.max(0, x + this.slot / 2 - wide / 2), this.bounds.width - wide);
    this.tip.style.transform = `translateX(${Math.round(left)}px)`;
  }
}
