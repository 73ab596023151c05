// The client of the AI SDK, unmodified, at an event stream that may break: prints one line of JSON.
//
//   node ai_sdk.mjs URL --post TEXT   sendMessage; after a break resumeStream, as `useChat` does
//   node ai_sdk.mjs URL --get         resumeStream only, as `useChat` with `resume` does on a page that is loaded
//   node ai_sdk.mjs URL --read        readUIMessageStream of one response, without a chat
//
//   --continue     resume with Last-Event-ID instead of from the beginning    --version 6   of `ai`, else 7
//   --session ID   the chat (s-1)      --last-event-id ID   of an earlier connection   --most N   connections (5)
//   --headers JSON   of every request   --answer JSON   to whatever the agent asks

import { options, watching } from "./watch.mjs";

const [, , url, ...rest] = process.argv;
const given = options(rest);
const six = given.version === "6";
const { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls, readUIMessageStream } = await import(
  six ? "ai-6" : "ai"
);
const { Chat } = await import(six ? "ai-react-6" : "@ai-sdk/react");

const { fetch, seen } = watching({ lastEventId: given["last-event-id"] ?? null, networkError: true });
const id = given.session ?? "s-1";
const headers = JSON.parse(given.headers ?? "{}");
const resume = ({ api }) => ({ api, headers: { ...headers, "Last-Event-ID": seen.lastEventId } });
const transport = new DefaultChatTransport({
  api: url,
  fetch,
  headers,
  ...(given.continue ? { resumeStreamIsReplay: false, prepareReconnectToStreamRequest: resume } : {}),
});

const told = { statuses: [], errors: [], finished: [], aside: [] };
const breaks = [];
const parts = given.read ? await read() : await chat();
const kinds = (type) => parts.filter((part) => part.type === type);

console.log(
  JSON.stringify({
    texts: kinds("text").map((part) => part.text),
    open: parts.filter((part) => part.state === "streaming").length,
    reasoning: kinds("reasoning").map((part) => part.text),
    calls: kinds("dynamic-tool").map(({ toolCallId, toolName, state, input, output, errorText }) => ({
      id: toolCallId,
      name: toolName,
      state,
      input,
      output,
      errorText,
    })),
    sources: parts.filter((part) => part.type.startsWith("source-")).map((part) => part.url ?? part.title),
    data: parts.filter((part) => part.type.startsWith("data-")).map((part) => [part.type, part.data]),
    order: parts.map((part) => part.type),
    ...told,
    breaks,
    eventIds: seen.ids,
    lastEventId: seen.lastEventId,
    requests: seen.requests,
  }),
);

async function chat() {
  let over = () => {};
  const held = new Chat({
    id,
    transport,
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onError: (error) => told.errors.push(String(error)),
    onData: (part) => part.transient && told.aside.push(part.type),
    onFinish: ({ isDisconnect, isError, finishReason }) => {
      told.finished.push({ isDisconnect, isError, finishReason: finishReason ?? null });
      over();
    },
  });
  const own = () => held.messages.filter((message) => message.role === "assistant");
  const texts = () => own().flatMap((m) => m.parts.filter((part) => part.type === "text").map((part) => part.text));
  await (given.post ? held.sendMessage({ id: "m-1", parts: [{ type: "text", text: given.post }] }) : held.resumeStream());
  for (let left = Number(given.most ?? 5) - 1; left > 0 && told.finished.at(-1)?.isDisconnect; left -= 1) {
    told.statuses.push(held.status);
    breaks.push({ error: String(held.error), had: texts(), lastEventId: seen.lastEventId });
    await held.resumeStream();
  }
  const asked = () =>
    held.lastMessage?.parts.find((part) => part.toolName === "input_required" && part.state === "input-available");
  while (given.answer !== undefined && asked()) {
    const { toolCallId } = asked();
    const finished = new Promise((resolve) => (over = resolve));
    await held.addToolOutput({ tool: "input_required", toolCallId, output: JSON.parse(given.answer) });
    await finished;
  }
  told.statuses.push(held.status);
  told.messages = own().map(({ id, metadata }) => ({ id, metadata }));
  return own().flatMap((message) => message.parts);
}

async function read() {
  const stream = await transport.reconnectToStream({ chatId: id });
  let last = { parts: [] };
  if (stream === null) return [];
  for await (const message of readUIMessageStream({ stream, onError: (error) => told.errors.push(String(error)) })) {
    last = message;
  }
  told.messages = [{ id: last.id, metadata: last.metadata }];
  return last.parts;
}
