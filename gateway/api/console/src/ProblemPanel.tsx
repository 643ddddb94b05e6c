import type { ApiError } from "./api";

/** A problem of the API, with its hint and a way to try again. */
export function ProblemPanel({
  error,
  onRetry,
  stale = false,
}: {
  error: ApiError;
  onRetry?: () => void;
  stale?: boolean;
}) {
  const locked = error.status === 403;
  return (
    <div class={`panel ${locked ? "locked" : "problem"}`} role="alert">
      <h2>{locked ? "🔒 Not for this key" : (error.problem.title ?? "The gateway cannot be reached")}</h2>
      <p>
        {error.message} {error.problem.hint}
      </p>
      {stale && !locked && <p>The figures below are from before.</p>}
      {onRetry && !locked && (
        <button type="button" onClick={onRetry}>
          Try again
        </button>
      )}
      {error.problem.requestId && <p class="note">Request {error.problem.requestId}</p>}
    </div>
  );
}
