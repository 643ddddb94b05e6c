import type { ComponentChildren } from "preact";

/** A part of the page that scrolls, reachable by keyboard. */
export function Scroll({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <section class="scroll" tabIndex={0} aria-label={name}>
      {children}
    </section>
  );
}
