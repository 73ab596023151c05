// What both clients are run with: a fetch that sees the ids of the events, which neither of them shows.

/** A fetch that notes requests and the ids of whole events, and otherwise changes nothing. */
export function watching({ lastEventId = null, networkError = false } = {}) {
  const seen = { lastEventId, ids: 0, requests: [] };
  const watched = async (url, init = {}) => {
    const headers = new Headers(init.headers);
    seen.requests.push({
      method: init.method ?? "GET",
      path: new URL(url).pathname + new URL(url).search,
      accept: headers.get("accept"),
      lastEventId: headers.get("last-event-id"),
    });
    const response = await fetch(url, init);
    if (!response.body || !response.ok) return response;
    const { status, headers: answered } = response;
    return new Response(noting(response.body, seen, networkError), { status, headers: answered });
  };
  return { fetch: watched, seen };
}

function noting(body, seen, networkError) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read();
        if (done) return controller.close();
        rest += decoder.decode(value, { stream: true });
        const events = rest.split("\n\n");
        rest = events.pop();
        for (const event of events) note(event, seen);
        controller.enqueue(value);
      } catch (error) {
        // What Chromium says of a body that breaks off; Node says "terminated".
        controller.error(networkError ? new TypeError("network error", { cause: error }) : error);
      }
    },
    cancel: (reason) => reader.cancel(reason),
  });
}

function note(event, seen) {
  for (const line of event.split("\n")) {
    if (line.startsWith("id: ")) {
      seen.lastEventId = line.slice(4);
      seen.ids += 1;
    }
  }
}

/** The options of a command line: --name value, or --name alone. */
export function options(argv) {
  const found = {};
  argv.forEach((word, place) => {
    if (!word.startsWith("--")) return;
    const next = argv[place + 1];
    found[word.slice(2)] = next === undefined || next.startsWith("--") ? true : next;
  });
  return found;
}
