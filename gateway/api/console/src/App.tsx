// The page: who signs in, which view is shown, and the data that its parts share.

import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { intervalOf, isLive, parseView, renderView, selection, TABS, type Tab, type View } from "./address";
import { api, unwrap } from "./api";
import { CallDetails } from "./CallDetails";
import { Calls } from "./Calls";
import { Chart } from "./Chart";
import { ClientPicker } from "./ClientPicker";
import { Download } from "./Download";
import { Figures } from "./Figures";
import { Filters } from "./Filters";
import { type Changes, type FeedState, follow } from "./feed";
import { time } from "./format";
import { Heatmap } from "./Heatmap";
import { Missed } from "./Missed";
import { ProblemPanel } from "./ProblemPanel";
import { useQuery } from "./query";
import { SignIn } from "./SignIn";
import { completeSignIn, signedIn, signOut } from "./session";
import { Top } from "./Top";
import { WindowPicker } from "./WindowPicker";

const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const REFRESH = 60_000; // milliseconds between refreshes of a live view without changes: edits of older calls
const FEED_DAYS = 2; // days that the change feed covers; changes of older calls appear with the next refresh

/** The view of the address, and a function that changes a part of it. */
function useView(): [View, (change: Partial<View>) => void] {
  const [view, setView] = useState(() => parseView(location.search, ZONE));
  useEffect(() => {
    const restore = () => setView(parseView(location.search, ZONE));
    addEventListener("popstate", restore);
    return () => removeEventListener("popstate", restore);
  }, []);
  const change = useCallback((changed: Partial<View>) => {
    setView((before) => {
      const next = { ...before, ...changed };
      const address = renderView(next);
      if (address !== location.search) history.pushState(null, "", address);
      return next;
    });
  }, []);
  return [view, change];
}

export function App() {
  const [ready, setReady] = useState(false);
  const [failure, setFailure] = useState("");
  const [session, setSession] = useState(0); // counts sign-ins; a new session loads all data again
  useEffect(() => {
    completeSignIn()
      .catch((error: Error) => setFailure(error.message))
      .finally(() => setReady(true));
  }, []);
  if (!ready) return null;
  return <Console key={session} failure={failure} onSession={() => setSession((before) => before + 1)} />;
}

function Console({ failure, onSession }: { failure: string; onSession: () => void }) {
  const [view, change] = useView();
  const [changes, setChanges] = useState<Changes | null>(null);
  const [feed, setFeed] = useState<FeedState | null>(null);
  const selected = useMemo(() => selection(view), [view]);
  const key = JSON.stringify(selected);
  const interval = intervalOf(view, Date.now());

  const clients = useQuery("clients", (signal) =>
    unwrap(api.GET("/clients", { params: { query: { range: "last_30_days", tz: view.tz } }, signal })),
  );
  const figures = useQuery(key, (signal) =>
    unwrap(api.GET("/calls/summary", { params: { query: { ...selected, compare: "previous" } }, signal })),
  );
  const buckets = useQuery(key + interval, (signal) =>
    unwrap(api.GET("/calls/summary", { params: { query: { ...selected, interval, groupBy: ["result"] } }, signal })),
  );
  const refresh = useRef((_: Changes) => {});
  refresh.current = (changed) => {
    setChanges(changed);
    figures.reload();
    buckets.reload();
  };
  const refreshAll = () => refresh.current({ upserts: [], removes: [] });

  const live = isLive(view, Date.now());
  const codes = view.clients.join();
  const refused = figures.problem?.status === 401 || figures.problem?.status === 403;
  // `codes` stands for the clients of the view
  useEffect(() => {
    setFeed(null);
    if (!live || refused) return;
    const controller = new AbortController();
    const start = new Date(Date.now() - FEED_DAYS * 86_400_000).toISOString().slice(0, 10);
    follow(view.clients, start, controller.signal, setFeed, (changed) => refresh.current(changed));
    const timer = setInterval(refreshAll, REFRESH);
    return () => {
      controller.abort();
      clearInterval(timer);
    };
  }, [codes, live, refused]);

  if (figures.problem?.status === 401) return <SignIn failure={failure} rejected={signedIn()} onSignedIn={onSession} />;
  const meta = figures.data?.meta;
  return (
    <>
      <a class="skip" href="#content">
        Skip to the calls
      </a>
      <header>
        <h1>Calls</h1>
        <ClientPicker view={view} change={change} clients={clients} />
        <WindowPicker view={view} change={change} />
        <p class="freshness" role="status">
          {meta && (
            <span class={meta.stale ? "bad" : ""} title="Time of the data shown">
              {meta.stale ? "Stale, as of " : "As of "}
              {time(meta.asOf, view.tz)}
            </span>
          )}
          {live && feed && <span class={`feed ${feed}`}>{FEED_WORDS[feed]}</span>}
        </p>
        {signedIn() && (
          <button
            type="button"
            class="plain"
            onClick={() => {
              signOut();
              onSession();
            }}
          >
            Sign out
          </button>
        )}
      </header>
      <main id="content" tabIndex={-1}>
        {figures.problem && <ProblemPanel error={figures.problem} onRetry={refreshAll} stale={figures.data !== null} />}
        <Filters view={view} change={change} />
        <Figures query={figures} />
        <Chart query={buckets} view={view} interval={interval} change={change} />
        <Tabs view={view} change={change}>
          <Download view={view} selected={selected} total={figures.data?.total.calls ?? null} />
        </Tabs>
        <section role="tabpanel" id="panel" aria-labelledby={`tab-${view.tab}`}>
          {view.tab === "calls" && <Calls view={view} change={change} selected={selected} changes={changes} />}
          {view.tab === "missed" && <Missed view={view} change={change} selected={selected} />}
          {view.tab === "hours" && <Heatmap selected={selected} />}
          {view.tab === "top" && <Top view={view} change={change} selected={selected} />}
        </section>
      </main>
      {view.call && <CallDetails view={view} onClose={() => change({ call: "" })} />}
    </>
  );
}

const FEED_WORDS: Record<FeedState, string> = {
  connecting: "Connecting …",
  live: "Live",
  waiting: "Reconnecting …",
  refused: "Not live",
};

function Tabs({
  view,
  change,
  children,
}: {
  view: View;
  change: (part: Partial<View>) => void;
  children: preact.ComponentChildren;
}) {
  const names = Object.keys(TABS) as Tab[];
  const move = (event: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(view.tab) + step + names.length) % names.length] as Tab;
    change({ tab: next });
    document.getElementById(`tab-${next}`)?.focus();
  };
  return (
    <div class="tabs">
      <div role="tablist" aria-label="Parts of the view" onKeyDown={move}>
        {names.map((name) => (
          <button
            key={name}
            type="button"
            role="tab"
            id={`tab-${name}`}
            aria-selected={view.tab === name}
            aria-controls="panel"
            tabIndex={view.tab === name ? 0 : -1}
            onClick={() => change({ tab: name })}
          >
            {TABS[name]}
          </button>
        ))}
      </div>
      {children}
    </div>
  );
}
