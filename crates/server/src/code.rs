//! What can go wrong, as stable words with their HTTP statuses.

use axum::http::StatusCode;

macro_rules! error_codes {
    ($($variant:ident $code:literal $status:ident $title:literal;)+) => {
        /// What went wrong, as a stable word. `api/errors.md` explains each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(#[doc = concat!("`", $code, "`: ", $title, ".")] $variant,)+
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The stable word, for example `function-crashed`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status),+ }
            }

            /// A few words for people, the same for every problem of this code.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }
        }
    };
}

error_codes! {
    BadRequest "bad-request" BAD_REQUEST "The request is malformed";
    BadName "bad-name" BAD_REQUEST "Not a function name";
    BadOption "bad-option" BAD_REQUEST "An option is not possible";
    BadImage "bad-image" BAD_REQUEST "The image cannot be used";
    Unauthenticated "unauthenticated" UNAUTHORIZED "Who asks is not known";
    Forbidden "forbidden" FORBIDDEN "The token may not do this";
    StartRefused "start-refused" FORBIDDEN "The start may not be chosen";
    UnknownFunction "unknown-function" NOT_FOUND "No such function";
    UnknownSnapshot "unknown-snapshot" NOT_FOUND "No such snapshot";
    UnknownRoute "unknown-route" NOT_FOUND "No such route";
    MethodNotAllowed "method-not-allowed" METHOD_NOT_ALLOWED "The route has no such method";
    RequestTimeout "request-timeout" REQUEST_TIMEOUT "The request came too slowly";
    HasLayers "has-layers" CONFLICT "Other snapshots are layers on it";
    TooLarge "too-large" PAYLOAD_TOO_LARGE "The body is too large";
    HeadTooLarge "head-too-large" REQUEST_HEADER_FIELDS_TOO_LARGE "The headers are too large";
    QueueFull "queue-full" TOO_MANY_REQUESTS "Too many requests wait already";
    QueueTimeout "queue-timeout" SERVICE_UNAVAILABLE "No instance became free in time";
    CrashLoop "crash-loop" SERVICE_UNAVAILABLE "The function does nothing but crash";
    OverBudget "over-budget" SERVICE_UNAVAILABLE "There is not enough memory left";
    WorkerLost "worker-lost" SERVICE_UNAVAILABLE "The process that ran it ended";
    Draining "draining" SERVICE_UNAVAILABLE "The server is shutting down";
    HostCannot "host-cannot" SERVICE_UNAVAILABLE "The host cannot run functions";
    FunctionCrashed "function-crashed" BAD_GATEWAY "The function crashed";
    OutOfMemory "out-of-memory" BAD_GATEWAY "The function ran out of memory";
    FunctionExited "function-exited" BAD_GATEWAY "The function exited instead of answering";
    FunctionError "function-error" BAD_GATEWAY "The function reported an error";
    BadAnswer "bad-answer" BAD_GATEWAY "The function's answer is not acceptable";
    Unconfirmed "unconfirmed-clone" BAD_GATEWAY "The clone did not confirm that it is unique";
    FunctionTimeout "function-timeout" GATEWAY_TIMEOUT "The function did not answer in time";
    WarmFailed "warm-failed" BAD_GATEWAY "The function failed while it was warmed";
    InitFailed "init-failed" BAD_GATEWAY "The function failed while it started";
    InitTimeout "init-timeout" GATEWAY_TIMEOUT "The function was not ready in time";
    StoreFailed "store-failed" INTERNAL_SERVER_ERROR "The snapshot store failed";
    Internal "internal" INTERNAL_SERVER_ERROR "Something failed inside the server";
}

impl ErrorCode {
    /// The code that is written `text`.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}
