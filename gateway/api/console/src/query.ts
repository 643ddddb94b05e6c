// Hooks: a request with data, problem and progress; a mark of the time when a part of the page is painted.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "./api";

export interface Query<Data> {
  data: Data | null;
  problem: ApiError | null;
  loading: boolean;
  reload: () => void;
}

/** Run `load` when `key` changes, and again on `reload`. A null key loads nothing. */
export function useQuery<Data>(key: string | null, load: (signal: AbortSignal) => Promise<Data>): Query<Data> {
  const [state, setState] = useState<Omit<Query<Data>, "reload"> & { key: string | null }>({
    key: null,
    data: null,
    problem: null,
    loading: key !== null,
  });
  const [round, setRound] = useState(0);
  const current = useRef(load);
  current.current = load;
  // `key` stands for everything that `load` reads
  useEffect(() => {
    if (key === null) return;
    const controller = new AbortController();
    setState((before) => ({ ...before, loading: true }));
    current.current(controller.signal).then(
      (data) => !controller.signal.aborted && setState({ key, data, problem: null, loading: false }),
      (error: unknown) => {
        if (controller.signal.aborted) return;
        const problem = error instanceof ApiError ? error : new ApiError(0, { detail: String(error) });
        // Data of another window must not stand under this one's heading.
        setState((before) => ({
          ...before,
          key,
          data: before.key === key ? before.data : null,
          problem,
          loading: false,
        }));
      },
    );
    return () => controller.abort();
  }, [key, round]);
  return { ...state, reload: useCallback(() => setRound((before) => before + 1), []) };
}

/** Mark in the performance timeline when a part is first painted. */
export function usePainted(name: string, ready: boolean): void {
  useEffect(() => {
    if (ready) requestAnimationFrame(() => setTimeout(() => performance.mark(`console-${name}`)));
  }, [name, ready]);
}
