import { useState } from "preact/hooks";
import type { View } from "./address";
import { label, words } from "./format";

const CHOICES: Record<string, string[]> = {
  result: ["connected", "busy", "no_answer", "abandoned", "other"],
  phoneType: ["normal", "cell", "payphone", "other"],
  recorded: ["true", "false"],
};
const TEXTS = ["ani", "campaign", "did", "target", "minDuration"];

/** The active filters as chips that can be removed, and a form to add one. */
export function Filters({ view, change }: { view: View; change: (part: Partial<View>) => void }) {
  const [name, setName] = useState("result");
  const [value, setValue] = useState("");
  const active = Object.entries(view.filters);
  const choices = CHOICES[name];
  const add = (event: Event) => {
    event.preventDefault();
    const chosen = choices ? value || choices[0] : value.trim();
    if (chosen) change({ filters: { ...view.filters, [name]: chosen }, call: "" });
    setValue("");
  };
  const remove = (removed: string) =>
    change({ filters: Object.fromEntries(active.filter(([other]) => other !== removed)) });
  return (
    <div class="filters">
      {active.map(([filter, text]) => (
        <span class="chip" key={filter}>
          {label(filter)}: {words(text)}
          <button type="button" aria-label={`Remove the filter ${label(filter)}`} onClick={() => remove(filter)}>
            ×
          </button>
        </span>
      ))}
      <form onSubmit={add}>
        <label class="hidden" for="filter">
          Filter by
        </label>
        <select
          id="filter"
          value={name}
          onChange={(event) => {
            setName(event.currentTarget.value);
            setValue("");
          }}
        >
          {[...Object.keys(CHOICES), ...TEXTS].map((one) => (
            <option key={one} value={one}>
              {label(one)}
            </option>
          ))}
        </select>
        <label class="hidden" for="filter-value">
          Value
        </label>
        {choices ? (
          <select
            id="filter-value"
            value={value || choices[0]}
            onChange={(event) => setValue(event.currentTarget.value)}
          >
            {choices.map((one) => (
              <option key={one} value={one}>
                {words(one)}
              </option>
            ))}
          </select>
        ) : (
          <input
            id="filter-value"
            value={value}
            inputMode={name === "minDuration" ? "numeric" : "text"}
            onInput={(event) => setValue(event.currentTarget.value)}
          />
        )}
        <button type="submit" class="plain">
          Add filter
        </button>
      </form>
    </div>
  );
}
