// Turns over a websocket against a live server, with every websocket that this runtime has.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, test } from "node:test";
import { ConnectionLost, InvalidRequest, NotFound, TooLarge, type TurnEvent } from "hope-client";
import { all, client, completed, Cutting, seen, URL_OF_SERVER, WEBSOCKETS } from "./server.js";

const ASKED = { max_tokens: 6, temperature: 0 };

for (const [name, WebSocket] of WEBSOCKETS) {
  describe(`over the websocket of ${name}`, () => {
    const hope = client(URL_OF_SERVER, { WebSocket });

    test("turns stream, one after the other", async () => {
      const conversation = await hope.stream(await hope.createSession());
      for (const version of [1, 2]) {
        const events = await all(conversation.turn("hello", ASKED));
        assert.equal(seen(events), completed(events).reply);
        assert.equal(completed(events).memory.version, version);
      }
      conversation.close();
      await assert.rejects(hope.stream("nobody"), NotFound);
    });

    test("a cancelled turn leaves no trace, and neither does one that nobody listens to", async () => {
      const conversation = await hope.stream(await hope.createSession());
      const events: TurnEvent[] = [];
      for await (const event of conversation.turn("hello", { max_tokens: 1024 })) {
        if (events.push(event) === 1) conversation.cancel();
      }
      assert.equal(events.at(-1)?.type, "turn.cancelled");
      for await (const event of conversation.turn("hello", { max_tokens: 1024 })) {
        if (event.type === "turn.token") break;
      }
      assert.equal(completed(await all(conversation.turn("hello", ASKED))).index, 0);
      conversation.close();
    });

    test("a refused turn leaves the conversation as it was", async () => {
      const conversation = await hope.stream(await hope.createSession());
      await assert.rejects(all(conversation.turn("hello", { temperature: 9 })), InvalidRequest);
      await assert.rejects(all(conversation.turn("x".repeat(2_000_000))), TooLarge);
      assert.equal(completed(await all(conversation.turn("hello", ASKED))).index, 0);
      conversation.close();
    });

    for (const where of ["turn.created", "turn.token", "turn.completed"]) {
      test(`a socket that breaks at ${where} is opened again, and the turn learned once`, async () => {
        const session = await hope.createSession();
        const cutting = await Cutting.open();
        const conversation = await client(cutting.url, { WebSocket }).stream(session);
        cutting.cutAt.push(where);
        const events = await all(conversation.turn("hello", ASKED));
        assert.deepEqual(cutting.cutAt, []);
        assert.equal(seen(events), completed(events).reply);
        assert.deepEqual((await all(hope.transcript(session))).map((turn) => turn.id), [completed(events).id]);
        conversation.close();
        cutting.close();
      });
    }

    test("a socket that is lost between two turns is not noticed", async () => {
      const cutting = await Cutting.open();
      const conversation = await client(cutting.url, { WebSocket }).stream(await hope.createSession());
      await all(conversation.turn("hello", ASKED));
      cutting.breakAll();
      const types = (await all(conversation.turn("again", ASKED))).map((event) => event.type);
      assert.ok(types.includes("turn.completed") && !types.includes("turn.restarted"));
      conversation.close();
      cutting.close();
    });

    test("a cancelled turn is not asked for again", async () => {
      const cutting = await Cutting.open();
      const session = await hope.createSession();
      const conversation = await client(cutting.url, { WebSocket }).stream(session);
      cutting.cutAt.push("turn.cancelled");
      const turn = conversation.turn("hello", { max_tokens: 1024 });
      assert.equal((await turn.next()).value?.type, "turn.created");
      conversation.cancel();
      await assert.rejects(all(turn), ConnectionLost);
      assert.equal((await hope.session(session)).version, 0);
      conversation.close();
      cutting.close();
    });

    test("a slow reader hears everything", async () => {
      const conversation = await hope.stream(await hope.createSession());
      const events: TurnEvent[] = [];
      for await (const event of conversation.turn("hello", { ...ASKED, max_tokens: 40 })) {
        if (events.push(event) % 10 === 0) await sleep(50);
      }
      assert.equal(seen(events), completed(events).reply);
      conversation.close();
    });
  });
}
