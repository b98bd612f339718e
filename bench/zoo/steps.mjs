// Run the steps of one client's script and print one JSON line for each, as steps.py does.
const { ZOO_URL: URL, ZOO_KEY: KEY, ZOO_MODEL: MODEL } = process.env;
export { URL, KEY, MODEL };
export const V1 = `${URL}/v1`;
export const COLOR = "Name a color.";
export const TOO_LONG = "word ".repeat(4000); // more tokens than the service's context
export const CITY = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

export async function step(name, run) {
  let failure = "";
  try {
    await run();
  } catch (error) {
    failure = `${error?.name}: ${error?.message ?? error}`.slice(0, 2000);
  }
  console.log("\n" + JSON.stringify({ step: name, failure }));
}

// Return the error that the call throws, whatever its class.
export async function refused(call) {
  let result;
  try {
    result = await call();
  } catch (error) {
    return error;
  }
  throw new Error(`an error was expected, and this came: ${JSON.stringify(result)?.slice(0, 300)}`);
}
