//! Sessions: a challenge, then a report that answered it, then resources. Kept in memory, limited in number and time.
//!
//! ```text
//!   auth ──► Challenged (nonce) ──attest──► Spent ──report passed──► Attested ──► resources
//!               │ nonce expires              │ report refused           │ session expires
//!               ▼                            ▼                          ▼
//!             gone                         gone                       gone
//! ```
//!
//! Where all places are taken, a new session gets that of the one whose state is the oldest: a guest has its resources within a second, and
//! whoever opens sessions without end holds nobody up for longer than [`SETTLED`].
//!
//! The nonce is taken by the first attestation that names the session, whatever comes of it. The cookie is 32 random bytes; the table
//! knows its SHA-256 alone, so that looking it up tells nothing of it, and log lines and tokens can name a session.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use workload::Hex;

use crate::limit::client_of;

/// SHA-256 of a session's cookie.
pub type SessionId = Hex<32>;

/// A session that has been in its state for this long can lose its place to a new one.
const SETTLED: Duration = Duration::from_secs(10);

/// Limits of [`Sessions`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a nonce waits for its attestation.
    pub nonce: Duration,
    /// How long an attested session gets resources.
    pub session: Duration,
    /// Most sessions at once.
    pub total: usize,
    /// Most sessions at once of one client address.
    pub per_client: usize,
}

/// Why there is no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cookie is of no session, or of one that is over.
    #[error("there is no such session, or it has expired")]
    Unknown,
    /// An attestation has taken the nonce already.
    #[error("the nonce of this session has been used")]
    Spent,
    /// No report has passed in this session.
    #[error("the session has not been attested")]
    NotAttested,
    /// There are as many as there may be, and all of them are new.
    #[error("there are too many sessions; try again later")]
    Full,
    /// No random numbers.
    #[error("the random number generator failed")]
    Random,
}

/// What was asked of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge<T> {
    /// The nonce as the guest was sent it.
    pub nonce: String,
    /// What the guest said with its request.
    pub request: T,
}

enum State<T, A> {
    Challenged(Challenge<T>),
    Spent,
    Attested(Arc<A>),
}

struct Session<T, A> {
    client: IpAddr,
    /// Opened or attested.
    since: Instant,
    expires: Instant,
    state: State<T, A>,
}

/// A new session.
pub struct Opened {
    /// Value of the cookie, 64 hexadecimal digits.
    pub cookie: String,
    /// Its name in tables and logs.
    pub id: SessionId,
    /// For the guest.
    pub nonce: String,
}

/// All sessions. `T` is what a guest said with its request, `A` what its report said.
pub struct Sessions<T, A> {
    limits: Limits,
    table: Mutex<HashMap<SessionId, Session<T, A>>>,
}

/// Name of the session that a cookie belongs to.
pub fn session_id(cookie: &str) -> SessionId {
    Hex(Sha256::digest(cookie.as_bytes()).into())
}

impl<T, A> Sessions<T, A> {
    /// No sessions yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            table: Mutex::new(HashMap::new()),
        }
    }

    /// Opens a session for a client at `now`. `nonce` writes 32 random bytes as the client's dialect has them.
    pub fn open(
        &self,
        client: IpAddr,
        request: T,
        now: Instant,
        nonce: fn(&[u8; 32]) -> String,
    ) -> Result<Opened, Error> {
        let (mut cookie, mut bytes) = ([0; 32], [0; 32]);
        getrandom::fill(&mut cookie).map_err(|_| Error::Random)?;
        getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
        let cookie = Hex(cookie).to_string();
        let nonce = nonce(&bytes);
        let id = session_id(&cookie);
        let client = client_of(client);
        let mut table = self.table();
        make_room(&mut table, self.limits.per_client, now, |session| {
            session.client == client
        })?;
        make_room(&mut table, self.limits.total, now, |_| true)?;
        table.insert(
            id,
            Session {
                client,
                since: now,
                expires: now + self.limits.nonce,
                state: State::Challenged(Challenge {
                    nonce: nonce.clone(),
                    request,
                }),
            },
        );
        Ok(Opened { cookie, id, nonce })
    }

    /// Takes the challenge of a session, which no one else gets then.
    pub fn take_challenge(&self, id: &SessionId, now: Instant) -> Result<Challenge<T>, Error> {
        let mut table = self.table();
        let session = live(&mut table, id, now)?;
        match std::mem::replace(&mut session.state, State::Spent) {
            State::Challenged(challenge) => Ok(challenge),
            other => {
                session.state = other;
                Err(Error::Spent)
            }
        }
    }

    /// Notes that the report of a session passed.
    pub fn attest(&self, id: &SessionId, attested: A, now: Instant) -> Result<(), Error> {
        let mut table = self.table();
        let session = live(&mut table, id, now)?;
        session.state = State::Attested(Arc::new(attested));
        session.since = now;
        session.expires = now + self.limits.session;
        Ok(())
    }

    /// What the report of a session said.
    pub fn attested(&self, id: &SessionId, now: Instant) -> Result<Arc<A>, Error> {
        match &live(&mut self.table(), id, now)?.state {
            State::Attested(attested) => Ok(Arc::clone(attested)),
            State::Challenged(_) | State::Spent => Err(Error::NotAttested),
        }
    }

    /// How many there are, expired ones included until somebody needs their place.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what has expired.
    pub fn sweep(&self, now: Instant) {
        self.table().retain(|_, session| session.expires > now);
    }

    fn table(&self) -> MutexGuard<'_, HashMap<SessionId, Session<T, A>>> {
        // Every change is one insertion or assignment: nothing is left half done by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes sure that fewer than `limit` of the sessions that `counts` holds for are there.
fn make_room<T, A>(
    table: &mut HashMap<SessionId, Session<T, A>>,
    limit: usize,
    now: Instant,
    counts: impl Fn(&Session<T, A>) -> bool,
) -> Result<(), Error> {
    let full = |table: &HashMap<_, _>| {
        table.len() >= limit && table.values().filter(|session| counts(session)).count() >= limit
    };
    if !full(table) {
        return Ok(());
    }
    table.retain(|_, session| session.expires > now);
    if !full(table) {
        return Ok(());
    }
    let oldest = table
        .iter()
        .filter(|(_, session)| counts(session) && now.saturating_duration_since(session.since) >= SETTLED)
        .min_by_key(|(_, session)| session.since)
        .map(|(id, _)| *id);
    table.remove(&oldest.ok_or(Error::Full)?);
    Ok(())
}

fn live<'a, T, A>(
    table: &'a mut HashMap<SessionId, Session<T, A>>,
    id: &SessionId,
    now: Instant,
) -> Result<&'a mut Session<T, A>, Error> {
    table
        .get_mut(id)
        .filter(|session| session.expires > now)
        .ok_or(Error::Unknown)
}

/// A nonce as trustee writes it: base64.
pub fn base64_nonce(bytes: &[u8; 32]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
