import { useState } from "preact/hooks";
import { beginSignIn, issuer, signIn } from "./session";

/** Ask for an access key, or lead to the issuer's sign-in page. */
export function SignIn({
  failure,
  rejected,
  onSignedIn,
}: {
  failure: string;
  rejected: boolean;
  onSignedIn: () => void;
}) {
  const [key, setKey] = useState("");
  const [error, setError] = useState(failure);
  const submit = (event: Event) => {
    event.preventDefault();
    if (!key.trim()) return setError("Enter a key first.");
    signIn("key", key.trim());
    onSignedIn();
  };
  return (
    <main class="sign-in">
      <h1>Calls</h1>
      <form onSubmit={submit}>
        <label for="key">Access key</label>
        <input
          id="key"
          type="password"
          autoComplete="off"
          autofocus
          value={key}
          onInput={(event) => setKey(event.currentTarget.value)}
          aria-describedby="key-note"
        />
        <p class="note" id="key-note">
          The operator of the gateway gives you one. It is kept until this tab is closed.
        </p>
        {(error || rejected) && (
          <p class="bad" role="alert">
            {error || "This key was not accepted. It may have been revoked or have expired."}
          </p>
        )}
        <button type="submit">Sign in</button>
        {issuer() && (
          <button
            type="button"
            class="plain"
            onClick={() => beginSignIn().catch((reason: Error) => setError(reason.message))}
          >
            Sign in with your organisation
          </button>
        )}
      </form>
    </main>
  );
}
