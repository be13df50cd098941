// Talk to a Hope server: sessions over HTTP, turns over a websocket. Knows the wire and nothing behind it.

export { HopeClient, type SessionRef, type TurnOptions } from "./client.js";
export type * from "./contract.js";
export { Conversation, type ConversationTurnOptions } from "./conversation.js";
export {
  CommitUnknown,
  Conflict,
  ConnectionLost,
  CorruptMemory,
  DeadlineExceeded,
  Draining,
  Forbidden,
  HopeRequestError,
  Interrupted,
  InvalidRequest,
  LeaseLost,
  NotFound,
  Overloaded,
  RateLimited,
  ServerFailure,
  StoreUnavailable,
  TooLarge,
  Unauthorized,
  Unavailable,
  Unreachable,
  Unsupported,
} from "./errors.js";
export type { WebSocketConstructor, WebSocketLike } from "./socket.js";
export type { ClientOptions } from "./wire.js";
