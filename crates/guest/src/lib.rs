//! The SDK that a Dormouse function links.
//!
//! A function is an ordinary Rust program whose `main` ends in [`serve`]:
//!
//! ```no_run
//! dormouse_guest::serve(|request| format!("you asked for {}\n", request.target()));
//! ```
//!
//! Everything before [`serve`] (or inside the closure given to [`serve_with_init`]) runs once per
//! function; then the host takes a snapshot. Each request runs in a clone of that snapshot, and
//! what it changes is gone afterwards.
//!
//! ```text
//! main ─► init ─► before_snapshot hooks ─► [snapshot] ─► after_restore hooks ─► handler ─► answer
//!         once per function                              in each clone
//! ```
//!
//! **Clones are equal until they are told apart.** [`random`] and the clocks of `std` differ in
//! every clone. Random bytes that were drawn *before* the snapshot, the keys of a `HashMap` for
//! example, are the same in all of them: draw such secrets in an [`after_restore`] hook. The keys of
//! a `HashMap` that a handler makes are the same too, unless it has [`HashKeys`].
//!
//! No handler sees a request before the clone's own random bytes are mixed in and all hooks have run:
//! the SDK cannot open the request earlier, and the host hears nobody who has not.
//!
//! A handler's `Err` becomes an error answer with its message; a panic ends this clone alone.
//!
//! The crate brings its own global allocator on Hermit, because the kernel's slows down with the
//! number of live blocks.

#[cfg(any(test, target_os = "hermit"))]
mod alloc;
mod hash;
mod hooks;
mod port;
mod random;
mod request;
mod response;
mod serve;

pub use hash::HashKeys;
pub use hooks::{after_restore, before_snapshot};
pub use random::random;
pub use request::{Headers, Request};
pub use response::{IntoResponse, Response};
pub use serve::{serve, serve_with_init};
