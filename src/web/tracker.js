// <script defer src="https://HOST/tracker.js" data-site="shop"></script>
// Optional: data-user, data-endpoint, data-hash (the hash names pages, too), data-write-key. No cookies.
(() => {
  const script = document.currentScript;
  if (!script || window.tidegate) return;
  const { site, endpoint, user, hash, writeKey } = script.dataset;
  const events = endpoint || new URL('/api/v1/events', script.src).href;
  // Beacons have no headers. A key needs no escape.
  const target = writeKey ? events + (events.includes('?') ? '&' : '?') + 'write_key=' + writeKey : events;
  const memory = {}; // for storage that is blocked or full
  let userId = user, fresh = [], timer, busy, seen, referrer;

  // The page never notices us, whatever is broken or forbidden in it.
  const safely = (f) => (...args) => { try { return f(...args); } catch (e) { /* ours alone */ } };
  const load = safely((where) => memory[where] || window[where].getItem('tidegate'));
  const save = (where, text) => {
    memory[where] = text;
    safely(() => { window[where].setItem('tidegate', text); memory[where] = ''; })();
  };

  // crypto.randomUUID needs https.
  const uuid = () => '10000000-1000-4000-8000-100000000000'.replace(/[018]/g, (c) =>
    (c ^ crypto.getRandomValues(new Uint8Array(1))[0] & 15 >> c / 4).toString(16));

  const session = (now) => {
    const [id, last] = (load('sessionStorage') || '').split(' ');
    const current = now - last < 18e5 ? id : uuid(); // ends after 30 idle minutes
    save('sessionStorage', current + ' ' + now);
    return current;
  };

  const queue = () => safely(() => JSON.parse(load('localStorage')).slice())() || [];
  const keep = (events) => save('localStorage', JSON.stringify(events.slice(-200)));
  const body = (events) => JSON.stringify(events.map((e) => Object.assign(e, { sent_at: Date.now() })));

  // Events leave the queue when answered; by id, as other tabs share it.
  const retry = async () => {
    const batch = queue().slice(0, 20);
    if (busy || !batch[0] || navigator.onLine === false) return;
    busy = true;
    try {
      const text = body(batch);
      // Browsers refuse keepalive above 64 KiB.
      const { status } = await fetch(target, { method: 'POST', body: text, keepalive: text.length < 2e4, credentials: 'omit' });
      if (status < 500 && status !== 429) {
        keep(queue().filter((e) => !batch.some((sent) => sent.id === e.id)));
        setTimeout(retry);
      }
    } catch (e) { /* the next event, load or `online` tries again */ }
    busy = false;
  };

  const flush = safely(() => {
    const events = fresh;
    fresh = [];
    timer = 0;
    if (!events[0]) return;
    // Routers set the title after the URL, so it is read late.
    events.forEach((e) => { e.title = document.title; });
    // A beacon hides its answer: only for events that nothing stands in the way of.
    if (navigator.onLine !== false && !queue()[0] && safely(() => navigator.sendBeacon(target, body(events)))()) return;
    keep(queue().concat(events));
    retry();
  });

  const page = () => hash === undefined ? location.href.split('#')[0] : location.href;

  const track = safely((type, data) => {
    const timestamp = Date.now();
    data = data && JSON.parse(JSON.stringify(data)); // as it is now
    fresh.push({
      type, data, timestamp, id: uuid(), site, url: page(), referrer, user_id: userId,
      session_id: session(timestamp), product_id: data && data.product_id,
    });
    timer = timer || setTimeout(flush, 200);
  });

  const view = safely(() => {
    if (page() === seen) return;
    flush();
    referrer = seen || document.referrer;
    seen = page();
    track('page_view');
  });

  const start = safely(() => {
    if (seen || document.prerendering || document.visibilityState === 'prerender') return;
    ['pushState', 'replaceState'].forEach((name) => {
      const original = history[name];
      history[name] = function () {
        original.apply(this, arguments);
        view();
      };
    });
    ['popstate', 'hashchange'].forEach((name) => addEventListener(name, view));
    // A page from the back/forward cache is shown, not loaded.
    addEventListener('pageshow', (e) => { if (e.persisted) { seen = ''; view(); } });
    view();
    retry();
  });

  window.tidegate = { track, identify: (id) => { userId = id; } };
  addEventListener('online', retry);
  addEventListener('pagehide', flush);
  document.addEventListener('prerenderingchange', start);
  document.addEventListener('visibilitychange', () => document.hidden ? flush() : start());
  start();
})();
