//! The desk before the keeper of the locks' connection: whoever finds the keeper free is served at once, in his own task;
//! whoever does not leaves a request, which the [`Attendant`] has served with all others that have piled up.
//!
//! A task that serves everybody costs each caller two changes of task, a tenth of what it takes to take a lock and let it go.
//! Invariant: the keeper is free, or the work it is at lies here, where anybody can drive it to its end. So a caller that is
//! dropped in the middle, or keeps its future and does not poll it, keeps nobody waiting, and what was begun on the
//! connection is finished: by whoever comes next, or by the attendant, who looks five times a second.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::keeper::{Keeper, PING, Request};

/// How many requests may wait for the keeper.
const QUEUE: usize = 1_024;

/// How many are served together.
const BATCH: usize = 128;

/// A round of the keeper's. Whoever waits for it drives it.
type Work = Shared<BoxFuture<'static, ()>>;

/// Where requests are made.
#[derive(Debug, Clone)]
pub struct Desk {
    place: Weak<Place>,
    requests: mpsc::Sender<Request>,
}

/// Nobody serves any more.
#[derive(Debug)]
pub struct Closed;

/// Serves what is left at the desk, and looks after the connection.
pub struct Attendant {
    place: Arc<Place>,
    requests: mpsc::Receiver<Request>,
}

struct Place {
    state: Mutex<State>,
    /// A lease ends before the attendant would wake.
    early: Notify,
}

/// Who begins a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Caller,
    Attendant,
}

struct State {
    /// Nothing while there is work.
    keeper: Option<Keeper>,
    /// The newest.
    work: Work,
    /// Whether the attendant waits for the keeper: then nobody goes before.
    is_awaited: bool,
    /// When the attendant wakes.
    wake: Instant,
}

/// A desk, and its attendant, which is to be run.
pub fn open(keeper: Keeper) -> (Desk, Attendant) {
    let (sender, requests) = mpsc::channel(QUEUE);
    let work = futures::future::ready(()).boxed().shared();
    let state = State { keeper: Some(keeper), work, is_awaited: false, wake: Instant::now() };
    let place = Arc::new(Place { state: Mutex::new(state), early: Notify::new() });
    (Desk { place: Arc::downgrade(&place), requests: sender }, Attendant { place, requests })
}

impl Desk {
    /// Has `request` served, or leaves it to be. What is begun or left is served, whatever becomes of this future.
    pub async fn serve(&self, request: Request) -> Result<(), Closed> {
        let place = self.place.upgrade().ok_or(Closed)?;
        match place.begin(By::Caller, vec![request]) {
            Ok(work) => work.await,
            Err((requests, _)) => {
                for request in requests {
                    self.requests.send(request).await.map_err(|_| Closed)?;
                }
            }
        }
        Ok(())
    }

    /// Leaves `request` to be served, if there is room for it.
    pub fn leave(&self, request: Request) {
        drop(self.requests.try_send(request));
    }
}

impl Attendant {
    /// Serves until nobody is left to ask.
    pub async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let wake = self.place.plan();
            tokio::select! {
                received = self.requests.recv_many(&mut batch, BATCH) => if received == 0 {
                    break;
                },
                () = self.place.early.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
            self.round(std::mem::take(&mut batch)).await;
        }
        let keeper = self.place.state().keeper.take();
        if let Some(mut keeper) = keeper {
            keeper.close().await;
        }
    }

    /// A round with `requests`, as soon as the keeper is free.
    async fn round(&self, mut requests: Vec<Request>) {
        loop {
            match self.place.begin(By::Attendant, requests) {
                Ok(work) => return work.await,
                Err((refused, work)) => {
                    requests = refused;
                    work.await;
                }
            }
        }
    }
}

impl Place {
    /// Begins a round with `requests`, or gives them back with the work that the keeper is at. A caller begins one only if
    /// the attendant does not wait for the keeper, and the keeper need not connect first: the connection lives in the
    /// attendant's runtime.
    fn begin(self: &Arc<Self>, by: By, requests: Vec<Request>) -> Result<Work, (Vec<Request>, Work)> {
        let mut state = self.state();
        let is_awaited = state.is_awaited;
        let may = |keeper: &mut Keeper| by == By::Attendant || (keeper.is_connected() && !is_awaited);
        let Some(mut keeper) = state.keeper.take_if(may) else {
            state.is_awaited |= by == By::Attendant;
            return Err((requests, state.work.clone()));
        };
        state.is_awaited = false;
        // The work lies in the place, which must not keep itself.
        let place = Arc::downgrade(self);
        let round = async move {
            keeper.round(requests).await;
            if let Some(place) = place.upgrade() {
                place.take_back(keeper);
            }
        };
        state.work = round.boxed().shared();
        Ok(state.work.clone())
    }

    fn take_back(&self, keeper: Keeper) {
        let ends = keeper.ends();
        let mut state = self.state();
        state.keeper = Some(keeper);
        if ends.is_some_and(|ends| ends < state.wake) {
            self.early.notify_one();
        }
    }

    /// When the attendant wakes unless there is reason to before.
    fn plan(&self) -> Instant {
        let mut state = self.state();
        let ends = state.keeper.as_ref().and_then(Keeper::ends);
        let look = Instant::now() + PING;
        state.wake = ends.map_or(look, |ends| ends.min(look));
        state.wake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change of the state is one assignment, whole wherever a panic came.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
