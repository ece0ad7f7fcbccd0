//! A function that is open: one snapshot, or several layouts of it, which take turns.
//!
//! All clones of a snapshot have their addresses in common. A function that was deployed with several
//! layouts has as many snapshots, each booted at a base of its own, so that what one clone gives away
//! of its addresses holds for one request in so many only. Its members are separate in what belongs
//! to a snapshot (instances, working set, damage, lease) and share what belongs to a function's
//! requests ([`Traffic`](crate::traffic::Traffic)).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dormouse_snapshot::{FunctionName, Snapshot, SnapshotId, Store};

use crate::config::PoolConfig;
use crate::deploy::SavedFunction;
use crate::error::Error;
use crate::function::Function;
use crate::loading::Shared;

/// How often the snapshots of a function are looked up again when one is removed meanwhile.
const OPEN_ATTEMPTS: u32 = 4;

/// A function's snapshots that are served together.
pub(crate) struct Group {
    /// From old to new; never empty.
    members: Vec<Member>,
    /// The function's newest snapshot. It may be damaged, and so be no member.
    newest: SnapshotId,
    /// How many of the members there should be.
    layouts: usize,
    next: AtomicUsize,
}

struct Member {
    function: Arc<Function>,
    leases: Arc<AtomicUsize>,
}

/// A member that was taken for a request.
pub(crate) struct Taken {
    pub(crate) function: Arc<Function>,
    pub(crate) hold: Hold,
}

/// Counts a request of a member for as long as it lives.
pub(crate) struct Hold {
    leases: Arc<AtomicUsize>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Group {
    /// Opens what `name` is served with. Layouts that are damaged are left out, as long as one is not.
    /// Blocks while memory is read.
    ///
    /// # Errors
    /// As [`Function::open`].
    pub(crate) fn open(
        store: &Store,
        name: &FunctionName,
        pool: &PoolConfig,
        shared: &Shared,
    ) -> Result<Arc<Self>, Error> {
        let mut attempts = 1..OPEN_ATTEMPTS;
        loop {
            match Self::open_once(store, name, pool, shared) {
                Err(Error::UnknownSnapshot { .. }) if attempts.next().is_some() => {}
                opened => return opened.map(Arc::new),
            }
        }
    }

    fn open_once(
        store: &Store,
        name: &FunctionName,
        pool: &PoolConfig,
        shared: &Shared,
    ) -> Result<Self, Error> {
        let served = store.served(name)?;
        let mut members: Vec<Member> = Vec::new();
        let mut damage = None;
        for id in &served {
            let snapshot: Result<Snapshot<SavedFunction>, _> = store.open_id(name, id);
            let traffic = members.first().map(|member| &member.function.traffic);
            let opened = snapshot
                .map_err(Error::from)
                .and_then(|snapshot| Function::open(store, snapshot, pool, shared, traffic));
            match opened {
                Ok(function) => members.push(Member::new(function)),
                Err(error @ Error::Store(_)) => {
                    if served.len() > 1 {
                        tracing::warn!(function = %name, snapshot = %id, %error, "a layout is left out");
                    }
                    damage = Some(error);
                }
                Err(mut error) => {
                    if let Error::OverBudget { needed_bytes, .. }
                    | Error::LowMemory { needed_bytes, .. } = &mut error
                    {
                        // Whoever finds room opens all of them.
                        *needed_bytes = needed_bytes.saturating_mul(served.len() as u64);
                    }
                    return Err(error);
                }
            }
        }
        let (Some(member), Some(newest)) = (members.first(), served.last()) else {
            return Err(damage.unwrap_or_else(|| Error::UnknownFunction {
                name: name.to_string(),
            }));
        };
        if let ([id], Some(layout)) = (&*served, member.function.manifest().layout()) {
            tracing::warn!(
                function = %name, snapshot = %id, layouts = layout.of,
                "the other layouts of this deployment are missing: deploy the function again"
            );
        }
        Ok(Self {
            newest: *newest,
            layouts: served.len(),
            members,
            next: AtomicUsize::new(0),
        })
    }

    /// A member for a request: the next one in turn that is not damaged. Where that would have to
    /// build an instance beside those that it has at work, one that has some idle goes before it.
    ///
    /// # Errors
    /// [`Error::Store`] where all are damaged.
    pub(crate) fn take(&self) -> Result<Taken, Error> {
        let members = self.members.len();
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % members;
        let mut usable = (turn..turn + members)
            .map(|at| &self.members[at % members])
            .filter(|member| member.function.check_undamaged().is_ok());
        let Some(first) = usable.next() else {
            return self.check_undamaged().map(|()| self.members[turn].take());
        };
        let is_busy = first.leases.load(Ordering::Relaxed) > 0;
        if !is_busy || first.function.idle_instances() > 0 {
            return Ok(first.take());
        }
        let idle = usable.find(|member| member.function.idle_instances() > 0);
        Ok(idle.unwrap_or(first).take())
    }

    /// Refuses, once all that it is made of was found to be damaged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub(crate) fn check_undamaged(&self) -> Result<(), Error> {
        let mut checked = self.functions().map(|member| member.check_undamaged());
        let first = checked.next().unwrap_or(Ok(()));
        first.or_else(|damage| {
            if checked.any(|checked| checked.is_ok()) {
                Ok(())
            } else {
                Err(damage)
            }
        })
    }

    /// Whether all layouts are there, and none was found to be damaged.
    pub(crate) fn is_whole(&self) -> bool {
        self.members.len() == self.layouts
            && self
                .functions()
                .all(|member| member.check_undamaged().is_ok())
    }

    /// Whether this was opened when `id` was the function's newest snapshot.
    pub(crate) fn is_of(&self, id: SnapshotId) -> bool {
        self.newest == id
    }

    /// The newest member, for what all have in common.
    pub(crate) fn newest(&self) -> &Arc<Function> {
        &self.members[self.members.len() - 1].function
    }

    fn functions(&self) -> impl Iterator<Item = &Arc<Function>> {
        self.members.iter().map(|member| &member.function)
    }

    pub(crate) fn idle_instances(&self) -> usize {
        self.functions().map(|member| member.idle_instances()).sum()
    }

    /// Asks all idle instances for the memory of their clones.
    pub(crate) fn reclaim(&self) {
        self.functions().for_each(|member| member.reclaim());
    }

    /// Ends all idle instances.
    pub(crate) fn shed_idle(&self) {
        self.functions().for_each(|member| member.shed_idle());
    }

    /// Has instances that wait for long give back what they hold.
    pub(crate) fn rest(&self) {
        self.functions().for_each(|member| member.rest());
    }

    /// Ends all idle instances and waits until they are gone.
    pub(crate) async fn end_idle(&self) {
        for member in &self.members {
            member.function.end_idle().await;
        }
    }
}

impl Member {
    fn new(function: Arc<Function>) -> Self {
        Self {
            function,
            leases: Arc::default(),
        }
    }

    fn take(&self) -> Taken {
        self.leases.fetch_add(1, Ordering::Relaxed);
        Taken {
            function: Arc::clone(&self.function),
            hold: Hold {
                leases: Arc::clone(&self.leases),
            },
        }
    }
}
