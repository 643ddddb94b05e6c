import { useRef, useState } from "preact/hooks";
import type { View } from "./address";
import type { components } from "./contract";
import { number } from "./format";
import type { Query } from "./query";

const SHOWN = 200; // codes in the list; the search narrows it

interface Props {
  view: View;
  change: (part: Partial<View>) => void;
  clients: Query<components["schemas"]["ClientList"]>;
}

/** Choose all clients, or up to 50 by their codes. */
export function ClientPicker({ view, change, clients }: Props) {
  const [search, setSearch] = useState("");
  const menu = useRef<HTMLDetailsElement>(null);
  const all = view.clients[0] === "*";
  const found = (clients.data?.data ?? []).filter(({ clientCode }) => clientCode.includes(search.trim()));
  const toggle = (code: string) => {
    const others = view.clients.filter((other) => other !== "*" && other !== code);
    const next = view.clients.includes(code) ? others : [...others, code];
    if (next.length <= 50) change({ clients: next.length ? next : ["*"], call: "" });
  };
  const close = (event: KeyboardEvent) => {
    if (event.key !== "Escape" || !menu.current) return;
    menu.current.open = false;
    menu.current.querySelector("summary")?.focus();
  };
  return (
    <details class="menu" ref={menu} onKeyDown={close}>
      <summary>
        {all ? "All clients" : view.clients.length === 1 ? view.clients[0] : `${view.clients.length} clients`}
      </summary>
      <div class="sheet">
        <label for="client-search">Search clients</label>
        <input
          id="client-search"
          type="search"
          value={search}
          onInput={(event) => setSearch(event.currentTarget.value)}
        />
        <ul class="choices">
          <li>
            <label>
              <input type="checkbox" checked={all} onChange={() => change({ clients: ["*"], call: "" })} /> All clients
            </label>
          </li>
          {found.slice(0, SHOWN).map(({ clientCode, calls }) => (
            <li key={clientCode}>
              <label>
                <input
                  type="checkbox"
                  checked={view.clients.includes(clientCode)}
                  onChange={() => toggle(clientCode)}
                />{" "}
                {clientCode}
                <span class="note"> {number(calls)} calls in 30 days</span>
              </label>
            </li>
          ))}
        </ul>
        {clients.problem && <p class="note">The list of clients cannot be loaded: {clients.problem.message}</p>}
        {found.length > SHOWN && <p class="note">{number(found.length - SHOWN)} more: search to find them.</p>}
        {clients.data && !found.length && <p class="note">No client with calls in the last 30 days matches.</p>}
      </div>
    </details>
  );
}
