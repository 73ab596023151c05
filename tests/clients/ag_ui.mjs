// The client of AG-UI, unmodified, at an event stream that may break: prints one line of JSON.
//
//   node ag_ui.mjs URL --post TEXT    runAgent by POST; after a break runAgent again, as an application would
//   node ag_ui.mjs URL --get          GET by an overridden requestInit; after a break with Last-Event-ID
//
//   --session ID   the thread (s-1)    --last-event-id ID   of an earlier connection    --most N   connections (5)
//   --headers JSON   of every request   --answer JSON   to whatever the agent asks

import { HttpAgent } from "@ag-ui/client";
import { options, watching } from "./watch.mjs";

const [, , url, ...rest] = process.argv;
const given = options(rest);
const { fetch, seen } = watching({ lastEventId: given["last-event-id"] ?? null });

class GetAgent extends HttpAgent {
  requestInit() {
    const headers = { ...this.headers, Accept: "text/event-stream" };
    if (seen.lastEventId !== null) headers["Last-Event-ID"] = seen.lastEventId;
    return { method: "GET", headers, signal: this.abortController.signal };
  }
}

// When a body breaks off, the client throws once more where nobody can catch it: `reader.cancel()` in its
// `runHttpRequest` fails with the same error.
const unhandled = [];
process.on("unhandledRejection", (error) => unhandled.push(String(error)));

const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));
console.error = () => {}; // the client logs each failure that it also throws

const headers = JSON.parse(given.headers ?? "{}");
const config = { url, threadId: given.session ?? "s-1", fetch, headers };
const agent = given.get ? new GetAgent(config) : new HttpAgent(config);
if (given.post) agent.addMessage({ id: "m-1", role: "user", content: given.post });

const told = { starts: [], ends: [], errors: [], custom: [], steps: [], interrupts: [] };
agent.subscribe({
  onRunStartedEvent: ({ event }) => void told.starts.push(event.runId),
  onRunFinishedEvent: ({ outcome, result, interrupts }) => {
    told.ends.push({ outcome, result });
    if (interrupts) told.interrupts.push(...interrupts);
  },
  onRunErrorEvent: ({ event }) => void told.errors.push({ message: event.message, code: event.code }),
  onCustomEvent: ({ event }) => void told.custom.push(event.name),
  onStepStartedEvent: ({ event }) => void told.steps.push(event.stepName),
});

const breaks = [];
let resume;
for (let left = Number(given.most ?? 5); left > 0; left -= 1) {
  try {
    await agent.runAgent(resume && { resume });
    if (given.answer === undefined || agent.pendingInterrupts.length === 0) break;
    const payload = JSON.parse(given.answer);
    resume = agent.pendingInterrupts.map(({ id }) => ({ interruptId: id, status: "resolved", payload }));
  } catch (error) {
    breaks.push({ error: String(error), had: text(), lastEventId: seen.lastEventId });
  }
}

function text(role = "assistant") {
  return agent.messages.filter((m) => m.role === role && m.content).map((m) => m.content);
}

console.log(
  JSON.stringify({
    texts: text(),
    own: agent.messages.filter((m) => m.role === "assistant" && m.content).map((m) => [m.id, m.content]),
    users: text("user"),
    reasoning: text("reasoning"),
    activities: agent.messages.filter((m) => m.role === "activity").map((m) => m.activityType),
    calls: agent.messages
      .flatMap((m) => m.toolCalls ?? [])
      .map((call) => ({ id: call.id, name: call.function.name, args: call.function.arguments })),
    results: agent.messages.filter((m) => m.role === "tool").map((m) => [m.toolCallId, m.content]),
    ids: agent.messages.map((m) => m.id),
    ...told,
    breaks,
    warnings,
    unhandled,
    eventIds: seen.ids,
    lastEventId: seen.lastEventId,
    requests: seen.requests,
  }),
);
