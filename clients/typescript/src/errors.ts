// What can go wrong, as a tree; every error carries the server's words and the contract's code.
//
//   HopeRequestError
//   ├── Unreachable           nobody answered: nothing was done
//   │   └── ConnectionLost    the answer was lost: what became of the request is not known
//   ├── InvalidRequest        400: a field is malformed, out of range or unknown
//   │   └── Unsupported       a feature that this server does not offer
//   ├── Unauthorized          401: no key, or a wrong one
//   ├── Forbidden             403: a key without that right
//   ├── NotFound              404: unknown session, version, generation or route
//   ├── Conflict              409: id taken, key re-used, version is not the head
//   ├── TooLarge              413: body or message over the limit
//   ├── RateLimited           429: the caller's own limit
//   ├── ServerFailure         500: not safe to repeat blindly
//   │   ├── CorruptMemory     a stored memory failed its checksum
//   │   ├── LeaseLost         another replica took the session over; nothing was written
//   │   └── CommitUnknown     the store vanished while committing; the outcome is unknown
//   ├── Unavailable           503: nothing was learned, safe to repeat
//   │   ├── Overloaded        the queue is full
//   │   ├── StoreUnavailable  the store does not answer
//   │   ├── Draining          the server is stopping
//   │   └── Interrupted       the server stopped in the middle of the turn
//   └── DeadlineExceeded      504: the turn's deadline passed; nothing was learned

/** The error object of the contract. */
export interface ErrorObject {
  message: string;
  type: string;
  code: string;
  param: string | null;
}

interface Details {
  code?: string;
  status?: number;
  param?: string | null;
  retryAfterMs?: number | undefined;
  repeatable?: boolean;
  cause?: unknown;
}

/** Base of every error of this client. */
export class HopeRequestError extends Error {
  static readonly code: string = "internal_error";
  static readonly status: number | null = null;
  static readonly repeatable: boolean = false;

  /** For programs. */
  readonly code: string;
  /** Of the HTTP answer, or the one it would have had; null where nobody answered. */
  readonly status: number | null;
  /** The field at fault, if one is. */
  readonly param: string | null;
  /** After which trying again makes sense, where the server said so. */
  readonly retryAfterMs: number | undefined;
  /** Whether nothing was done and the same request may be made again. */
  readonly repeatable: boolean;

  constructor(message: string, details: Details = {}) {
    super(message, { cause: details.cause });
    const kind = new.target;
    this.name = kind.name;
    this.code = details.code ?? kind.code;
    this.status = details.status ?? kind.status;
    this.param = details.param ?? null;
    this.retryAfterMs = details.retryAfterMs;
    this.repeatable = details.repeatable ?? kind.repeatable;
  }
}

export class Unreachable extends HopeRequestError {
  static override readonly code: string = "unreachable";
  static override readonly repeatable: boolean = true;
}

export class ConnectionLost extends Unreachable {
  static override readonly code = "closed";
  static override readonly repeatable = false;
}

export class InvalidRequest extends HopeRequestError {
  static override readonly code: string = "invalid_request";
  static override readonly status = 400;
}

export class Unsupported extends InvalidRequest {
  static override readonly code = "unsupported";
}

export class Unauthorized extends HopeRequestError {
  static override readonly code = "unauthorized";
  static override readonly status = 401;
}

export class Forbidden extends HopeRequestError {
  static override readonly code = "forbidden";
  static override readonly status = 403;
}

export class NotFound extends HopeRequestError {
  static override readonly code = "not_found";
  static override readonly status = 404;
}

export class Conflict extends HopeRequestError {
  static override readonly code = "conflict";
  static override readonly status = 409;
}

export class TooLarge extends HopeRequestError {
  static override readonly code = "too_large";
  static override readonly status = 413;
}

export class RateLimited extends HopeRequestError {
  static override readonly code = "rate_limited";
  static override readonly status = 429;
  static override readonly repeatable = true;
}

export class ServerFailure extends HopeRequestError {
  static override readonly code: string = "internal_error";
  static override readonly status = 500;
}

export class CorruptMemory extends ServerFailure {
  static override readonly code = "corrupt_memory";
}

export class LeaseLost extends ServerFailure {
  static override readonly code = "lease_lost";
}

export class CommitUnknown extends ServerFailure {
  static override readonly code = "commit_unknown";
}

export class Unavailable extends HopeRequestError {
  static override readonly code: string = "unavailable";
  static override readonly status = 503;
  static override readonly repeatable = true;
}

export class Overloaded extends Unavailable {
  static override readonly code = "overloaded";
}

export class StoreUnavailable extends Unavailable {
  static override readonly code = "store_unavailable";
}

export class Draining extends Unavailable {
  static override readonly code = "draining";
}

export class Interrupted extends Unavailable {
  static override readonly code = "cancelled";
}

export class DeadlineExceeded extends HopeRequestError {
  static override readonly code = "deadline_exceeded";
  static override readonly status = 504;
}

// By code; the first of a status answers for a code that this client does not know.
const KINDS = [
  InvalidRequest,
  Unsupported,
  Unauthorized,
  Forbidden,
  NotFound,
  Conflict,
  TooLarge,
  RateLimited,
  ServerFailure,
  CorruptMemory,
  LeaseLost,
  CommitUnknown,
  Unavailable,
  Overloaded,
  StoreUnavailable,
  Draining,
  Interrupted,
  DeadlineExceeded,
];

/** The error object of a websocket or of a stream; such a frame has no headers, so its code says what is safe. */
export function fromEvent(error: ErrorObject): HopeRequestError {
  const kind = KINDS.find((one) => one.code === error.code) ?? HopeRequestError;
  return new kind(error.message, { code: error.code, param: error.param });
}

/** The error object of an HTTP answer: safe to repeat where it says when, and does not forbid it. */
export function fromAnswer(status: number, headers: Headers, error: ErrorObject): HopeRequestError {
  const kind =
    KINDS.find((one) => one.code === error.code) ?? KINDS.find((one) => one.status === status) ?? HopeRequestError;
  const wait = headers.get("retry-after");
  return new kind(error.message, {
    code: error.code,
    status,
    param: error.param,
    retryAfterMs: wait !== null && /^\d+$/.test(wait) ? Number(wait) * 1000 : undefined,
    repeatable: wait !== null && headers.get("x-should-retry") !== "false",
  });
}
