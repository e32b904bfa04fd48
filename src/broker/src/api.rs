//! What the broker answers: every request becomes one reply, and every decision one line of the verdict log. No HTTP here.
//!
//! ```text
//!   POST /kbs/v0/auth                            ┐
//!   POST /kbs/v0/attest                          │ KBS protocol
//!   GET  /kbs/v0/resource/<id>/<type>/<tag>      ┘
//!   GET  /kbs/v0/key/<id>                        ┐ older dialect, with auth and attest in its own shape: mkcw.rs
//!   POST /kbs/v0/register_workload               ┘
//!   PUT, GET, DELETE /admin/v0/workloads/<id>    ┐ admin token
//!   GET, POST        /admin/v0/workloads         ┘
//!   GET  /healthz, /metrics
//! ```

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tee::appraise::AppraisalPolicy;
use workload::{Hex, Passphrase};

use crate::appraisal::{Appraiser, Genuine, Refused, Tee};
use crate::config::Mkcw;
use crate::jwe::EncryptionKey;
use crate::metrics::{Gauges, Metrics};
use crate::mkcw;
use crate::policy::{Launches, Policies};
use crate::protocol::{self, ErrorInformation, ResourcePath};
use crate::record::Registration;
use crate::session::{self, SessionId, Sessions};
use crate::store::{self, Store};
use crate::token::{Claims, Tokens};
use crate::verdict::{Outcome, Verdict, VerdictLog};

/// A request.
#[derive(Debug)]
pub struct Call<'a> {
    /// "GET", "POST", ….
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// The header `Cookie`.
    pub cookie: Option<&'a str>,
    /// The header `Authorization`.
    pub authorization: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
    /// Who asks.
    pub client: IpAddr,
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    /// Status of HTTP.
    pub status: u16,
    /// The header `Content-Type`.
    pub content_type: &'static str,
    /// The header `Set-Cookie`.
    pub cookie: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// A JSON document.
    pub fn json(status: u16, body: &impl Serialize) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self {
                status,
                content_type: "application/json",
                cookie: None,
                body,
            },
            // Only types of this crate come here, whose maps have texts as keys.
            Err(_) => Self::empty(500),
        }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self {
            status,
            content_type: "application/json",
            cookie: None,
            body: Vec::new(),
        }
    }

    pub(crate) fn text(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            content_type: "text/plain; version=0.0.4",
            cookie: None,
            body: body.into(),
        }
    }

    pub(crate) fn with_cookie(self, name: &str, value: &str) -> Self {
        Self {
            cookie: Some(format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict")),
            ..self
        }
    }
}

/// Why a request gets nothing.
#[derive(Debug)]
pub struct Refusal {
    /// Status of HTTP.
    pub status: u16,
    /// Type of error, as trustee names it.
    pub kind: &'static str,
    /// What decided, for the verdict log.
    pub clause: Cow<'static, str>,
    /// A sentence for the verdict log.
    pub detail: String,
    /// A sentence for the client, where it should not see `detail`.
    pub shown: Option<&'static str>,
}

impl Refusal {
    /// A refusal whose sentence the client sees.
    pub fn new(status: u16, kind: &'static str, clause: &'static str, detail: impl ToString) -> Self {
        Self {
            status,
            kind,
            clause: clause.into(),
            detail: detail.to_string(),
            shown: None,
        }
    }

    pub(crate) fn not_found(detail: impl ToString) -> Self {
        Self::new(404, "InvalidRequestPath", "unregistered", detail)
    }

    fn method(allowed: &str) -> Self {
        Self::new(
            405,
            "InvalidRequestPath",
            "request",
            format!("only {allowed} is allowed here"),
        )
    }

    /// The broker itself is at fault; the log of the process says how.
    pub(crate) fn internal(error: impl std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        tracing::error!("{text}");
        Self {
            shown: Some("the broker can't answer at the moment"),
            ..Self::new(503, "PluginInternalError", "broker", text)
        }
    }

    pub(crate) fn of_session(error: session::Error) -> Self {
        match error {
            session::Error::Full | session::Error::Random => {
                Self::new(503, "AttestationError", "session", error)
            }
            session::Error::Spent => Self::new(401, "AttestationError", "nonce", error),
            _ => Self::new(401, "TokenNotFound", "session", error),
        }
    }

    fn of_store(error: store::Error) -> Self {
        match error {
            store::Error::TooLong => Self::new(413, "SerdeError", "request", error),
            error => Self::internal(error),
        }
    }

    pub(crate) fn of_evidence(refused: Refused) -> Self {
        Self {
            status: 401,
            kind: "AttestationError",
            clause: refused.clause.into(),
            detail: refused.detail,
            shown: None,
        }
    }

    /// The document's text says 403 for what an attested guest may not have.
    fn of_policy(refused: Refused) -> Self {
        Self {
            status: 403,
            kind: "PolicyDeny",
            clause: refused.clause.into(),
            detail: refused.detail,
            shown: None,
        }
    }

    /// The reply.
    pub fn reply(&self) -> Reply {
        let detail = match self.shown {
            Some(shown) => shown.into(),
            None => format!("{}: {}", self.clause, self.detail),
        };
        Reply::json(
            self.status,
            &ErrorInformation {
                error_type: format!(
                    "https://github.com/confidential-containers/kbs/errors/{}",
                    self.kind
                ),
                detail,
            },
        )
    }
}

/// What a guest said with its request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it says it is.
    pub tee: Tee,
    /// The workload, in the older dialect.
    pub workload: Option<String>,
}

/// The key that a guest gets resources under.
pub enum GuestKey {
    /// KBS protocol.
    Jwe(EncryptionKey),
    /// The older dialect.
    Pkcs1(rsa::PublicKey),
}

/// What the report of a session said.
pub struct Attested {
    /// Evidence that is genuine and fresh.
    pub evidence: Genuine,
    /// The guest's key, which the report vouches for.
    pub key: GuestKey,
    /// What the guest said with its request.
    pub asked: Asked,
}

/// What a broker is made of.
pub struct Parts {
    /// Registrations.
    pub store: Store,
    /// Limits of sessions.
    pub sessions: session::Limits,
    /// Checks evidence.
    pub appraiser: Appraiser,
    /// Policy files.
    pub policies: Policies,
    /// Files that admit launches.
    pub launches: Launches,
    /// Signs tokens.
    pub tokens: Tokens,
    /// Verdicts.
    pub verdicts: VerdictLog,
    /// SHA-256 of the admin token.
    pub admin: Option<Hex<32>>,
    /// The older dialect.
    pub mkcw: Mkcw,
}

/// The broker.
pub struct Broker {
    store: Store,
    sessions: Sessions<Asked, Attested>,
    session_seconds: u64,
    appraiser: Appraiser,
    policies: Policies,
    launches: Launches,
    tokens: Tokens,
    verdicts: VerdictLog,
    admin: Option<Hex<32>>,
    mkcw: Mkcw,
    /// Counters.
    pub metrics: Metrics,
}

/// What the log says beside the outcome.
#[derive(Default)]
struct Subject<'a> {
    session: Option<&'a SessionId>,
    tee: Option<Tee>,
    resource: Option<String>,
    launch_digest: Option<String>,
}

/// The route of a path, for limits and metrics.
pub fn route(path: &str) -> &'static str {
    match path {
        "/kbs/v0/auth" => "auth",
        "/kbs/v0/attest" => "attest",
        "/kbs/v0/register_workload" => "register_workload",
        "/healthz" => "healthz",
        "/metrics" => "metrics",
        _ if path.starts_with("/kbs/v0/resource/") => "resource",
        _ if path.starts_with("/kbs/v0/key/") => "key",
        _ if path.starts_with("/admin/v0/workloads") => "admin",
        _ => "other",
    }
}

impl Broker {
    /// A broker without sessions.
    pub fn new(parts: Parts) -> Self {
        Self {
            store: parts.store,
            sessions: Sessions::new(parts.sessions),
            session_seconds: parts.sessions.session.as_secs(),
            appraiser: parts.appraiser,
            policies: parts.policies,
            launches: parts.launches,
            tokens: parts.tokens,
            verdicts: parts.verdicts,
            admin: parts.admin,
            mkcw: parts.mkcw,
            metrics: Metrics::default(),
        }
    }

    /// Answers a request. Takes milliseconds of processor time for an attestation, and syncs the store for a registration.
    pub fn answer(&self, call: &Call) -> Reply {
        let result = match (route(call.path), call.method) {
            ("auth", "POST") => self.auth(call),
            ("attest", "POST") => self.attest(call),
            ("resource", "GET") => self.resource(call),
            ("key", "GET") if self.mkcw.enabled => self.key(call),
            ("register_workload", "POST") if self.mkcw.enabled => self.register_workload(call),
            ("admin", _) => self.admin(call),
            ("healthz", "GET" | "HEAD") => Ok(Reply::text("ok\n")),
            ("metrics", "GET") => Ok(Reply::text(self.metrics.page(&Gauges {
                sessions: self.sessions.len(),
                registrations: self.store.len(),
            }))),
            ("auth" | "attest", _) => Err(Refusal::method("POST")),
            ("resource" | "healthz" | "metrics", _) => Err(Refusal::method("GET")),
            _ => Err(Refusal::not_found("there is nothing at this path")),
        };
        result.unwrap_or_else(|refusal| refusal.reply())
    }

    /// Forgets sessions that are over.
    pub fn sweep(&self) {
        self.sessions.sweep(Instant::now());
    }

    fn auth(&self, call: &Call) -> Result<Reply, Refusal> {
        let result = self.auth_session(call);
        match result {
            Ok(_) => result,
            Err(_) => self.log("auth", call, &Subject::default(), Outcome::Accepted, result),
        }
    }

    fn auth_session(&self, call: &Call) -> Result<Reply, Refusal> {
        let request: protocol::Request = parse(call.body)?;
        if self.mkcw.enabled
            && let Some(workload) = mkcw::workload_of(&request)
        {
            return self.auth_mkcw(call, &request, workload);
        }
        if request.version != protocol::VERSION {
            let version = protocol::shown(&request.version);
            let detail = format!(
                "the client speaks version {version} of the protocol, and this broker {}",
                protocol::VERSION
            );
            return Err(Refusal::new(401, "AttestationError", "request", detail));
        }
        let tee = self.tee(&request.tee)?;
        let asked = Asked { tee, workload: None };
        let opened = self
            .sessions
            .open(call.client, asked, Instant::now(), session::base64_nonce)
            .map_err(Refusal::of_session)?;
        let challenge = protocol::Challenge {
            nonce: opened.nonce,
            extra_params: "",
        };
        Ok(Reply::json(200, &challenge).with_cookie(protocol::COOKIE, &opened.cookie))
    }

    fn auth_mkcw(
        &self,
        call: &Call,
        request: &protocol::Request,
        workload: String,
    ) -> Result<Reply, Refusal> {
        let tee = self.tee(&request.tee)?;
        let asked = Asked {
            tee,
            workload: Some(workload),
        };
        let opened = self
            .sessions
            .open(call.client, asked, Instant::now(), mkcw::nonce)
            .map_err(Refusal::of_session)?;
        let challenge = protocol::Challenge {
            nonce: opened.nonce,
            extra_params: "",
        };
        Ok(Reply::json(200, &challenge).with_cookie(mkcw::COOKIE, &opened.cookie))
    }

    /// The TEE of a name, if this broker accepts it.
    fn tee(&self, name: &str) -> Result<Tee, Refusal> {
        let tee = Tee::of_name(name).ok_or_else(|| {
            Refusal::new(
                401,
                "AttestationError",
                "tee",
                format!("TEE {} is not supported", protocol::shown(name)),
            )
        })?;
        self.appraiser.accepts(tee).map_err(Refusal::of_evidence)?;
        Ok(tee)
    }

    fn attest(&self, call: &Call) -> Result<Reply, Refusal> {
        let mut subject = Subject::default();
        let id = session_of_cookie(call);
        subject.session = id.as_ref().ok();
        let result = match &id {
            Ok(id) => self.attest_session(call, id, &mut subject),
            Err(_) => Err(Refusal::new(
                401,
                "AttestationError",
                "session",
                "the request has no session cookie",
            )),
        };
        self.log("attest", call, &subject, Outcome::Accepted, result)
    }

    fn attest_session<'a>(
        &self,
        call: &Call,
        id: &'a SessionId,
        subject: &mut Subject<'a>,
    ) -> Result<Reply, Refusal> {
        let challenge = self
            .sessions
            .take_challenge(id, Instant::now())
            .map_err(Refusal::of_session)?;
        subject.tee = Some(challenge.request.tee);
        if challenge.request.workload.is_some() {
            return self.attest_mkcw(call, id, challenge, subject);
        }
        let attestation: protocol::Attestation = parse(call.body)?;
        if attestation.runtime_data.nonce != challenge.nonce {
            return Err(Refusal::new(
                401,
                "AttestationError",
                "nonce",
                "the nonce is not this session's",
            ));
        }
        if !matches!(attestation.tee_evidence.additional_evidence.as_str(), "" | "{}") {
            return Err(Refusal::new(
                401,
                "AttestationError",
                "evidence",
                "evidence of additional devices is not supported",
            ));
        }
        let pubkey = &attestation.runtime_data.tee_pubkey;
        let key = EncryptionKey::parse(pubkey)
            .map_err(|error| Refusal::new(401, "AttestationError", "tee-pubkey", error))?;
        let evidence = self
            .appraiser
            .verify_json(
                challenge.request.tee,
                &attestation.tee_evidence.primary_evidence,
                &attestation
                    .runtime_data
                    .report_data(&attestation.tee_evidence.additional_evidence),
            )
            .map_err(Refusal::of_evidence)?;
        subject.launch_digest = Some(evidence.launch_digest());
        let token = self.token(id, &evidence, challenge.request.tee, pubkey);
        let attested = Attested {
            evidence,
            key: GuestKey::Jwe(key),
            asked: challenge.request,
        };
        self.sessions
            .attest(id, attested, Instant::now())
            .map_err(Refusal::of_session)?;
        Ok(Reply::json(200, &protocol::AttestationToken { token }))
    }

    fn attest_mkcw(
        &self,
        call: &Call,
        id: &SessionId,
        challenge: session::Challenge<Asked>,
        subject: &mut Subject,
    ) -> Result<Reply, Refusal> {
        let attestation: mkcw::Attestation = parse(call.body)?;
        let workload = challenge.request.workload.clone().unwrap_or_default();
        subject.resource = Some(workload.clone());
        let (key, report) = attestation
            .open()
            .map_err(|error| Refusal::new(401, "AttestationError", "evidence", error))?;
        let evidence = self
            .appraiser
            .verify_report(
                challenge.request.tee,
                &report,
                &[attestation.report_data(&challenge.nonce)],
            )
            .map_err(Refusal::of_evidence)?;
        subject.launch_digest = Some(evidence.launch_digest());
        // This dialect's clients give up here, not when they ask for the key.
        let registration = self.registration(&workload)?;
        self.decide(&registration, &challenge.request, &evidence)?;
        let attested = Attested {
            evidence,
            key: GuestKey::Pkcs1(key),
            asked: challenge.request,
        };
        self.sessions
            .attest(id, attested, Instant::now())
            .map_err(Refusal::of_session)?;
        Ok(Reply::empty(200))
    }

    fn token(&self, id: &SessionId, evidence: &Genuine, tee: Tee, pubkey: &protocol::TeePublicKey) -> String {
        let issued = seconds_since_epoch();
        self.tokens.issue(&Claims {
            session: *id,
            issued,
            expires: issued + self.session_seconds,
            tee: tee.name(),
            launch_digest: &evidence.launch_digest(),
            host_data: &evidence.host_data(),
            // The canonical text is JSON.
            tee_pubkey: serde_json::from_str(&pubkey.canonical()).unwrap_or_default(),
        })
    }

    fn resource(&self, call: &Call) -> Result<Reply, Refusal> {
        let path = call
            .path
            .strip_prefix("/kbs/v0/resource/")
            .and_then(ResourcePath::parse)
            .ok_or_else(|| {
                Refusal::new(
                    404,
                    "InvalidRequestPath",
                    "request",
                    "a resource's path is <repository>/<type>/<tag>",
                )
            })?;
        self.release(call, &path, |secret, key| match key {
            GuestKey::Jwe(key) => key
                .encrypt(secret.as_bytes())
                .map(|jwe| Reply::json(200, &jwe))
                .map_err(|error| Refusal::new(401, "JweError", "jwe", error)),
            GuestKey::Pkcs1(_) => Err(Refusal::new(
                403,
                "PolicyDeny",
                "session",
                "sessions of the older dialect get keys at /kbs/v0/key",
            )),
        })
    }

    fn key(&self, call: &Call) -> Result<Reply, Refusal> {
        let id = call.path.strip_prefix("/kbs/v0/key/").unwrap_or_default();
        let path = ResourcePath::parse(&format!("{id}/key/{}", crate::record::KEY_TAG))
            .ok_or_else(|| Refusal::not_found("a key's path is the id of a workload"))?;
        self.release(call, &path, |secret, key| match key {
            GuestKey::Pkcs1(key) => mkcw::encrypt(key, secret.as_bytes())
                .map(|text| Reply::json(200, &text))
                .map_err(|error| Refusal::new(401, "JweError", "key", error)),
            GuestKey::Jwe(_) => Err(Refusal::new(
                403,
                "PolicyDeny",
                "session",
                "sessions of the KBS protocol get resources at /kbs/v0/resource",
            )),
        })
    }

    /// Releases a resource, if the report of the session passed for it.
    fn release(
        &self,
        call: &Call,
        path: &ResourcePath,
        encrypt: impl Fn(&Passphrase, &GuestKey) -> Result<Reply, Refusal>,
    ) -> Result<Reply, Refusal> {
        let mut subject = Subject {
            resource: Some(path.to_string()),
            ..Subject::default()
        };
        let id = self.session(call);
        subject.session = id.as_ref().ok();
        let result = id
            .as_ref()
            .map_err(|error| Refusal::of_session(*error))
            .and_then(|id| {
                let attested = self
                    .sessions
                    .attested(id, Instant::now())
                    .map_err(Refusal::of_session)?;
                subject.tee = Some(attested.asked.tee);
                subject.launch_digest = Some(attested.evidence.launch_digest());
                if attested
                    .asked
                    .workload
                    .as_ref()
                    .is_some_and(|workload| *workload != path.repository)
                {
                    return Err(Refusal::new(
                        403,
                        "PolicyDeny",
                        "session",
                        "the session is of another workload",
                    ));
                }
                let registration = self.registration(&path.repository)?;
                let secret = registration
                    .resource(path)
                    .ok_or_else(|| Refusal::not_found(format!("there is no resource {path}")))?;
                self.decide(&registration, &attested.asked, &attested.evidence)?;
                encrypt(secret, &attested.key)
            });
        self.log("resource", call, &subject, Outcome::Released, result)
    }

    fn registration(&self, id: &str) -> Result<Registration, Refusal> {
        let json = self
            .store
            .get(id)
            .map_err(Refusal::of_store)?
            .ok_or_else(|| Refusal::not_found(format!("no workload {id} is registered")))?;
        Registration::read(&json).map_err(Refusal::internal)
    }

    /// Every policy that concerns a registration has to accept the evidence.
    fn decide(&self, registration: &Registration, asked: &Asked, evidence: &Genuine) -> Result<(), Refusal> {
        let id = &registration.id;
        let files = self.policies.of(id).map_err(Refusal::internal)?;
        // SECURITY: buildah has registered krun's guest, which speaks the older dialect. Nothing in it says which of cwrun's are good.
        let of_another = registration.host_data.is_none() && asked.workload.is_none();
        let admitted = match of_another {
            false => None,
            true => Some(self.admitted(id)?),
        };
        self.appraiser
            .decide(evidence, registration, admitted, &files)
            .map_err(Refusal::of_policy)
    }

    /// What was admitted of a workload that buildah registered.
    fn admitted(&self, id: &str) -> Result<AppraisalPolicy, Refusal> {
        self.launches.of(id).map_err(Refusal::internal)?.ok_or_else(|| {
            let detail = format!(
                "buildah registered {id} for krun, and no file {id}.toml in this broker's mkcw.launches admits another guest"
            );
            Refusal::new(403, "PolicyDeny", "launches", detail)
        })
    }

    /// The session of a cookie or of a token.
    fn session(&self, call: &Call) -> Result<SessionId, session::Error> {
        if let Some(token) = call.authorization.and_then(|value| value.strip_prefix("Bearer ")) {
            return self
                .tokens
                .check(token, seconds_since_epoch())
                .ok_or(session::Error::Unknown);
        }
        session_of_cookie(call)
    }

    fn admin(&self, call: &Call) -> Result<Reply, Refusal> {
        let rest = call.path.strip_prefix("/admin/v0/workloads").unwrap_or_default();
        let id = rest.strip_prefix('/').unwrap_or_default();
        let subject = Subject {
            resource: Some(id.chars().take(128).collect()).filter(|id: &String| !id.is_empty()),
            ..Subject::default()
        };
        if let Err(refusal) = self.check_admin(call) {
            return self.log("admin", call, &subject, Outcome::Changed, Err(refusal));
        }
        match (call.method, rest, protocol::is_name(id)) {
            ("GET", "" | "/", _) => Ok(Reply::json(200, &json!({"workloads": self.store.names()}))),
            ("POST", "" | "/", _) => {
                let (subject, result) = self.register_new(call);
                self.log("admin", call, &subject, Outcome::Changed, result)
            }
            ("PUT", _, true) => self.log("admin", call, &subject, Outcome::Changed, self.register(call, id)),
            ("DELETE", _, true) => self.log("admin", call, &subject, Outcome::Changed, self.unregister(id)),
            ("GET", _, true) => Ok(Reply::json(200, &self.registration(id)?.summary())),
            ("GET" | "PUT" | "DELETE", ..) => Err(Refusal::not_found(
                "a workload's path is /admin/v0/workloads/<id>",
            )),
            _ => Err(Refusal::method("GET, POST, PUT or DELETE")),
        }
    }

    fn check_admin(&self, call: &Call) -> Result<(), Refusal> {
        let refusal = |detail| Refusal::new(401, "AdminAuth", "admin-token", detail);
        let expected = self
            .admin
            .ok_or_else(|| refusal("this broker has no admin token"))?;
        let token = call
            .authorization
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refusal("the request has no admin token"))?;
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if bool::from(digest.ct_eq(&expected.0)) {
            Ok(())
        } else {
            Err(refusal("the admin token is wrong"))
        }
    }

    fn register(&self, call: &Call, id: &str) -> Result<Reply, Refusal> {
        let registration = registration_of(call)?;
        if registration.id != id {
            return Err(Refusal::new(
                400,
                "SerdeError",
                "registration",
                "id should be the one in the path",
            ));
        }
        let json = serialized(&registration)?;
        let new = self.store.put(id, &json).map_err(Refusal::of_store)?;
        Ok(Reply::json(if new { 201 } else { 200 }, &registration.summary()))
    }

    fn register_new(&self, call: &Call) -> (Subject<'static>, Result<Reply, Refusal>) {
        let mut subject = Subject::default();
        let result = registration_of(call).and_then(|registration| {
            subject.resource = Some(registration.id.clone());
            self.put_new(&registration)?;
            Ok(Reply::json(201, &registration.summary()))
        });
        (subject, result)
    }

    fn put_new(&self, registration: &Registration) -> Result<(), Refusal> {
        let json = serialized(registration)?;
        if self
            .store
            .put_new(&registration.id, &json)
            .map_err(Refusal::of_store)?
        {
            Ok(())
        } else {
            Err(Refusal::new(
                409,
                "AdminAuth",
                "registration",
                "a workload of this id is registered already",
            ))
        }
    }

    fn unregister(&self, id: &str) -> Result<Reply, Refusal> {
        if self.store.delete(id).map_err(Refusal::of_store)? {
            Ok(Reply::empty(204))
        } else {
            Err(Refusal::not_found(format!("no workload {id} is registered")))
        }
    }

    /// `POST /kbs/v0/register_workload`: with the admin token, or without if that is allowed and the id is new.
    fn register_workload(&self, call: &Call) -> Result<Reply, Refusal> {
        let mut subject = Subject::default();
        let result = match self.check_admin(call) {
            Err(refusal) if !self.mkcw.open_registration => Err(refusal),
            admin => mkcw_registration_of(call).and_then(|registration| {
                subject.resource = Some(registration.id.clone());
                match admin {
                    Ok(()) => {
                        let json = serialized(&registration)?;
                        self.store
                            .put(&registration.id, &json)
                            .map_err(Refusal::of_store)?;
                    }
                    Err(_) => self.put_new(&registration)?,
                }
                Ok(Reply::empty(200))
            }),
        };
        self.log("admin", call, &subject, Outcome::Changed, result)
    }

    /// Writes the verdict. What could not be written is not given.
    fn log(
        &self,
        event: &'static str,
        call: &Call,
        subject: &Subject,
        good: Outcome,
        result: Result<Reply, Refusal>,
    ) -> Result<Reply, Refusal> {
        let refusal = result.as_ref().err();
        let session = subject.session.map(|id| id.to_string());
        let verdict = Verdict {
            event,
            outcome: if refusal.is_some() { Outcome::Refused } else { good },
            clause: refusal.map(|refusal| &*refusal.clause),
            detail: refusal.map(|refusal| &*refusal.detail),
            client: call.client,
            session: session.as_ref().and_then(|id| id.get(..8)),
            tee: subject.tee.map(Tee::name),
            resource: subject.resource.as_deref(),
            launch_digest: subject.launch_digest.as_deref(),
        };
        let outcome = match verdict.outcome {
            Outcome::Accepted => "accepted",
            Outcome::Released => "released",
            Outcome::Changed => "changed",
            Outcome::Refused => "refused",
        };
        self.metrics
            .verdict(event, outcome, verdict.clause.unwrap_or_default());
        let written = self.verdicts.write(&verdict);
        match (result, written) {
            (Ok(_), Err(error)) => {
                tracing::error!("cannot write the verdict log, so nothing is given: {error}");
                Err(Refusal::new(
                    503,
                    "PluginInternalError",
                    "broker",
                    "the broker can't log its verdict",
                ))
            }
            (result, _) => result,
        }
    }
}

/// Parses a message of a client.
fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::new(401, "SerdeError", "request", error))
}

fn registration_of(call: &Call) -> Result<Registration, Refusal> {
    Registration::parse(call.body).map_err(|error| Refusal::new(400, "SerdeError", "registration", error))
}

fn mkcw_registration_of(call: &Call) -> Result<Registration, Refusal> {
    let workload: mkcw::Workload = parse(call.body)?;
    workload
        .registration()
        .map_err(|error| Refusal::new(400, "SerdeError", "registration", error))
}

fn serialized(registration: &Registration) -> Result<zeroize::Zeroizing<Vec<u8>>, Refusal> {
    serde_json::to_vec(registration)
        .map(zeroize::Zeroizing::new)
        .map_err(Refusal::internal)
}

fn session_of_cookie(call: &Call) -> Result<SessionId, session::Error> {
    let cookies = call.cookie.ok_or(session::Error::Unknown)?;
    cookies
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| [protocol::COOKIE, mkcw::COOKIE].contains(name))
        .map(|(_, value)| session::session_id(value))
        .ok_or(session::Error::Unknown)
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |duration| duration.as_secs())
}
