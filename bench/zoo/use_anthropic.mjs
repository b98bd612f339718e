// anthropic for Node: messages, their stream helper, tools and the count of tokens.
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { CITY, COLOR, KEY, MODEL, TOO_LONG, URL, refused, step } from "./steps.mjs";

const api = new Anthropic({ baseURL: URL, apiKey: KEY, maxRetries: 0 }).messages;
const messages = [{ role: "user", content: COLOR }];
const ask = { model: MODEL, messages, max_tokens: 32 };
const tools = [{ name: "weather", description: "The weather in a city.", input_schema: CITY }];

await step("plain", async () => {
  if (!(await api.create({ ...ask, system: "Be brief." })).content[0].text) throw new Error("empty");
});

await step("stream", async () => {
  const events = api.stream(ask);
  let text = "";
  events.on("text", (more) => (text += more));
  if ((await events.finalText()) !== text || !text) throw new Error(`streamed: ${text}`);
});

await step("tools", async () => {
  const { content } = await api.create({ ...ask, tools, tool_choice: { type: "any" } });
  const { id } = content.find((block) => block.type === "tool_use");
  const result = { type: "tool_result", tool_use_id: id, content: "11 C, rain" };
  const said = [{ role: "assistant", content }, { role: "user", content: [result] }];
  await api.create({ ...ask, tools, messages: [...messages, ...said] });
});

await step("schema", async () => {
  const Trip = z.object({ city: z.enum(["Paris", "Rome"]) });
  const output_config = { format: zodOutputFormat(Trip) };
  Trip.parse((await api.parse({ ...ask, max_tokens: 64, output_config })).parsed_output);
});

await step("turns", async () => {
  const history = [...messages];
  for (let turn = 0; turn < 3; turn++) {
    const { content } = await api.create({ ...ask, messages: history });
    history.push({ role: "assistant", content }, { role: "user", content: "Another." });
  }
});

await step("count_tokens", async () => {
  if (!(await api.countTokens({ model: MODEL, messages })).input_tokens) throw new Error("none");
});

await step("too_long", async () => {
  const error = await refused(() => api.create({ ...ask, messages: [{ role: "user", content: TOO_LONG }] }));
  if (!(error instanceof Anthropic.BadRequestError)) throw error;
});

await step("unknown_model", async () => {
  const error = await refused(() => api.create({ ...ask, model: "no" }));
  if (!(error instanceof Anthropic.NotFoundError) || error.type !== "not_found_error") throw error;
});
