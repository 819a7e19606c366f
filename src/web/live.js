// What the page knows of a site: reports for the chosen range, and the live deltas that came after them.
//
// Nothing is added up for good. Each report says how far it counted (`as_of.offset`), and `view` lays the deltas beyond
// that on top of it, so that a report which arrives between two deltas neither loses nor doubles anything.

const MINUTE = 60_000;
const STEP = { minute: MINUTE, hour: 60 * MINUTE };
// Without an answer for this long, the numbers are called stale.
const STALE = 20_000;
const LONGEST_WAIT = 15_000;
// Without news for this long, the visitors now are asked for.
const QUIET = 15_000;
// Who was seen in so many minutes of the clock, the running one included, is there now.
const NOW_MINUTES = 5;
const MOST_DELTAS = 1000;

export const RANGES = {
  now: { title: 'last 30 minutes', interval: 'minute', count: 30, every: 3000 },
  hour: { title: 'last hour', interval: 'minute', count: 60, every: 4000 },
  day: { title: 'last 24 hours', interval: 'hour', count: 24, every: 6000 },
  month: { title: 'last 30 days', interval: 'day', count: 30, every: 10_000 },
};

const LISTS = {
  pages: { key: 'url', count: 'views', deltas: 'pages' },
  referrers: { key: 'referrer', count: 'views', deltas: 'referrers' },
  events: { key: 'type', count: 'count', deltas: 'events' },
};

// Some browsers cannot name their zone.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
export const TIME_ZONE = zone && zone !== 'Etc/Unknown' ? zone : 'UTC';

/** Where the buckets of a range start; the last one is still filling. */
function buckets({ interval, count }, now) {
  const day = new Date(now);
  const local = now - day.getTimezoneOffset() * MINUTE;
  return Array.from({ length: count }, (_, i) => {
    const back = count - 1 - i;
    // Days go through the calendar, as two of them in a year do not have 24 hours.
    if (interval === 'day') return new Date(day.getFullYear(), day.getMonth(), day.getDate() - back).getTime();
    return now - (local % STEP[interval]) - back * STEP[interval];
  });
}

export class Live {
  /** `changed` is called whenever `view` has something new to say. */
  constructor({ site, range, metric, changed }) {
    Object.assign(this, { site, range, metric, changed });
    this.deltas = [];
    this.reports = null;
    this.latest = null; // snapshot or delta
    this.asOf = null;
    this.trouble = null; // the server's word on why it will not answer
    this.known = undefined; // whether the site was ever heard of
    this.skew = 0; // the server's clock less ours
    this.lostAt = Date.now();
    this.failures = 0;
    this.loadedAt = 0;
    this.heardAt = 0;
    this.dirty = false;
    this.onVisible = () => document.hidden || this.load();
    document.addEventListener('visibilitychange', this.onVisible);
    this.ticker = setInterval(() => this.tick(), 1000);
    this.listen();
    this.load();
  }

  close() {
    this.closed = true;
    this.source.close();
    this.loading?.abort();
    clearInterval(this.ticker);
    clearTimeout(this.relisten);
    document.removeEventListener('visibilitychange', this.onVisible);
  }

  choose(choice) {
    Object.assign(this, choice);
    if (choice.range) this.reports = null;
    this.load();
    this.changed();
  }

  now() {
    return Date.now() + this.skew;
  }

  /** 'live', 'reconnecting' or 'stale'; 'connecting' before the first word. */
  get status() {
    if (!this.lostAt) return 'live';
    if (Date.now() - this.lostAt > STALE) return 'stale';
    return this.latest || this.reports ? 'reconnecting' : 'connecting';
  }

  // ---- the feed

  listen() {
    const source = new EventSource(`/api/v1/stats/live?${new URLSearchParams({ site: this.site })}`);
    this.source = source;
    source.onopen = () => {
      this.lostAt = 0;
      this.changed();
    };
    source.addEventListener('snapshot', ({ data }) => {
      this.hear(JSON.parse(data));
      // The reports that are just being fetched are new enough to begin with.
      if (this.loading && Date.now() - this.loadedAt < 1000) this.dirty = true;
      else this.load();
    });
    source.addEventListener('delta', ({ data }) => {
      const delta = JSON.parse(data);
      this.deltas.push(delta);
      if (this.deltas.length > MOST_DELTAS) this.deltas.shift();
      this.known = true;
      this.dirty = true;
      this.hear(delta);
    });
    // A `gap` needs nothing of its own: the snapshot behind it fetches everything anew.
    source.onerror = () => {
      this.lose();
      // The browser reconnects by itself, except after an answer that is not a stream.
      if (source.readyState !== EventSource.CLOSED) return;
      clearTimeout(this.relisten);
      this.relisten = setTimeout(() => this.closed || this.listen(), this.wait());
      this.failures += 1;
    };
  }

  hear(message) {
    this.latest = message;
    this.heardAt = Date.now();
    this.counted(message.as_of);
    this.lostAt = 0;
    this.failures = 0;
    this.changed();
  }

  counted(asOf) {
    if (asOf && !(Date.parse(asOf.time) < Date.parse(this.asOf?.time))) this.asOf = asOf;
  }

  lose() {
    this.lostAt ||= Date.now();
    this.changed();
  }

  /** After a request got nowhere. A connection can be dead without the feed noticing, so it is made anew. */
  relink() {
    this.lose();
    if (this.source.readyState !== EventSource.OPEN) return;
    this.source.close();
    this.listen();
  }

  wait() {
    return Math.min(LONGEST_WAIT, 2000 * 2 ** Math.min(this.failures, 4));
  }

  // ---- the reports

  async ask(path, query, signal) {
    const answer = await fetch(`/api/v1/stats/${path}?${new URLSearchParams({ site: this.site, ...query })}`, { signal });
    const { success, data, error, timestamp } = await answer.json();
    if (!success) throw Object.assign(new Error(error?.message ?? answer.statusText), { status: answer.status });
    const skew = timestamp * 1000 - Date.now();
    // The envelope counts whole seconds; less than that is no skew.
    this.skew = Math.abs(skew) > 2000 ? skew : 0;
    return data;
  }

  async load() {
    if (this.closed) return;
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    const { signal } = loading;
    const { metric, range } = this;
    const { interval } = RANGES[range];
    const starts = buckets(RANGES[range], this.now());
    const from = new Date(starts[0]).toISOString();
    this.loadedAt = Date.now();
    this.loadedFor = starts.at(-1);
    this.dirty = false;
    try {
      const [summary, series, pages, referrers, events] = await Promise.all([
        this.ask('summary', { from }, signal),
        this.ask('timeseries', { from, metric, interval, tz: TIME_ZONE }, signal),
        this.ask('pages', { from, limit: 10 }, signal),
        this.ask('referrers', { from, limit: 10 }, signal),
        this.ask('events', { from, limit: 10 }, signal),
      ]);
      if (events.total || summary.page_views || summary.bots) this.known = true;
      if (!this.known) {
        const { page_views: views, bots, events: types } = await this.ask('summary', { from: '-30d' }, signal);
        this.known ||= views + bots + Object.keys(types).length > 0;
      }
      this.reports = { range, metric, summary, series, pages, referrers, events };
      const reached = Math.min(...[summary, series, pages, referrers, events].map((r) => r.as_of.offset));
      this.deltas = this.deltas.filter((delta) => !(delta.as_of.offset <= reached));
      this.counted(summary.as_of);
      this.trouble = null;
    } catch (error) {
      if (signal.aborted) return;
      this.dirty = true;
      const refused = error.status >= 400 && error.status < 500 && error.status !== 429;
      this.trouble = refused ? error.message : null;
      // An answer, even a bad one, says that the server is there; the feed then knows best whether it is live.
      if (!error.status) this.relink();
    } finally {
      if (this.loading === loading) this.loading = null;
      this.changed();
    }
  }

  /** Visitors leave without a word, so on a quiet site those who are still there are counted anew. */
  async ebb() {
    const { latest } = this;
    this.heardAt = Date.now();
    const minute = Math.floor(this.now() / MINUTE) * MINUTE;
    const from = new Date(minute - (NOW_MINUTES - 1) * MINUTE).toISOString();
    try {
      const { unique_visitors: visitors } = await this.ask('summary', { from });
      // What the feed said in the meantime is newer.
      if (this.closed || this.latest !== latest) return;
      this.latest = { ...latest, visitors_now: visitors };
      this.changed();
    } catch { /* the reports notice, too */ }
  }

  tick() {
    if (this.lostAt || this.trouble) this.changed(); // reconnecting turns stale by the clock
    const age = Date.now() - this.loadedAt;
    if (document.hidden) return;
    if (this.latest?.visitors_now && !this.lostAt && Date.now() - this.heardAt > QUIET) this.ebb();
    if (this.loading && age < LONGEST_WAIT) return;
    if (this.loading) this.relink();
    const range = RANGES[this.range];
    const pause = this.lostAt || this.trouble ? Math.max(this.wait(), 5000) : range.every;
    const rolled = buckets(range, this.now()).at(-1) !== this.loadedFor;
    // Once a minute without news, too: the range slides, and a dead connection shows itself.
    if (this.loading || age > (this.dirty ? pause : MINUTE) || (rolled && age > 1000)) this.load();
  }

  // ---- both together

  view() {
    const range = RANGES[this.range];
    const starts = buckets(range, this.now());
    const windows = this.latest?.windows ?? {};
    const reports = this.reports;
    // A window that is over stays the latest until the next event; two seconds for what the clocks differ.
    const running = (window, width) =>
      window && (window.window_start * 1000 + width > this.now() - 2000 ? window.page_views : 0);
    return {
      status: this.status,
      trouble: this.trouble,
      known: this.known,
      asOf: this.asOf,
      range,
      metric: this.metric,
      visitorsNow: this.latest?.visitors_now,
      minuteViews: running(windows.minute, STEP.minute),
      hourViews: running(windows.hour, STEP.hour),
      summary: reports && this.summary(reports.summary, windows, starts[0]),
      points: reports?.metric === this.metric ? this.points(reports.series, windows[range.interval], starts) : null,
      lists: reports && Object.fromEntries(Object.keys(LISTS).map((name) => [name, this.list(name, reports[name])])),
    };
  }

  since(report) {
    return this.deltas.filter((delta) => delta.as_of.offset > report.as_of.offset);
  }

  summary(report, windows, from) {
    const sum = { ...report };
    for (const delta of this.since(report)) {
      sum.page_views += delta.page_views;
      sum.bots += delta.bots;
    }
    // Uniques do not add up, but a window inside the range is a lower bound that is already live.
    for (const window of Object.values(windows)) {
      if (window.window_start * 1000 < from) continue;
      sum.unique_visitors = Math.max(sum.unique_visitors, window.unique_visitors);
      sum.sessions = Math.max(sum.sessions, window.sessions);
    }
    return sum;
  }

  points(series, window, starts) {
    const last = starts.at(-1);
    const values = new Map();
    for (const { start, value } of series.points) {
      // By the bucket it falls into, should the server know another rule for the clock change than this browser.
      const bucket = starts.findLast((from) => from <= Date.parse(start));
      values.set(bucket, (values.get(bucket) ?? 0) + value);
    }
    if (window?.window_start * 1000 === last && this.metric in window) {
      // Never step back behind a report that is newer than the window.
      values.set(last, Math.max(values.get(last) ?? 0, window[this.metric]));
    } else if (this.metric === 'page_views') {
      const more = this.since(series).reduce((sum, delta) => sum + delta.page_views, 0);
      values.set(last, (values.get(last) ?? 0) + more);
    }
    return starts.map((start) => ({ start, value: values.get(start) ?? 0 }));
  }

  list(name, report) {
    const { key, count, deltas } = LISTS[name];
    const counts = new Map(report.items.map((item) => [item[key] ?? '', item[count]]));
    let { total } = report;
    for (const delta of this.since(report)) {
      for (const [label, more] of Object.entries(delta[deltas] ?? {})) {
        counts.set(label, (counts.get(label) ?? 0) + more);
        total += more;
      }
    }
    return [...counts]
      .map(([label, n]) => ({ label, count: n, share: total ? n / total : 0 }))
      .sort((a, b) => b.count - a.count)
      .slice(0, 10);
  }
}
