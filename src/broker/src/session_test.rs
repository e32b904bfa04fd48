use super::*;

const LIMITS: Limits = Limits {
    nonce: Duration::from_secs(60),
    session: Duration::from_secs(300),
    total: 4,
    per_client: 2,
};
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

fn sessions() -> Sessions<&'static str, u32> {
    Sessions::new(LIMITS)
}

fn open(sessions: &Sessions<&'static str, u32>, client: IpAddr, now: Instant) -> Result<Opened, Error> {
    sessions.open(client, "snp", now, base64_nonce)
}

#[test]
fn a_session_is_challenged_then_attested() {
    let (sessions, now) = (sessions(), Instant::now());
    let opened = open(&sessions, CLIENT, now).unwrap();
    assert_eq!(session_id(&opened.cookie), opened.id);
    assert_eq!(STANDARD.decode(&opened.nonce).unwrap().len(), 32);
    assert_eq!(sessions.attested(&opened.id, now), Err(Error::NotAttested));
    let challenge = sessions.take_challenge(&opened.id, now).unwrap();
    assert_eq!(
        challenge,
        Challenge {
            nonce: opened.nonce,
            request: "snp"
        }
    );
    sessions.attest(&opened.id, 7, now).unwrap();
    assert_eq!(*sessions.attested(&opened.id, now).unwrap(), 7);
}

#[test]
fn a_nonce_is_taken_once() {
    let (sessions, now) = (sessions(), Instant::now());
    let opened = open(&sessions, CLIENT, now).unwrap();
    sessions.take_challenge(&opened.id, now).unwrap();
    assert_eq!(sessions.take_challenge(&opened.id, now), Err(Error::Spent));
    assert_eq!(sessions.attested(&opened.id, now), Err(Error::NotAttested));
    sessions.attest(&opened.id, 7, now).unwrap();
    assert_eq!(sessions.take_challenge(&opened.id, now), Err(Error::Spent));
    assert_eq!(*sessions.attested(&opened.id, now).unwrap(), 7, "still attested");
}

#[test]
fn nonces_and_sessions_expire() {
    let (sessions, now) = (sessions(), Instant::now());
    let opened = open(&sessions, CLIENT, now).unwrap();
    assert_eq!(
        sessions.take_challenge(&opened.id, now + LIMITS.nonce),
        Err(Error::Unknown)
    );
    sessions.take_challenge(&opened.id, now).unwrap();
    sessions.attest(&opened.id, 7, now).unwrap();
    assert!(
        sessions
            .attested(&opened.id, now + LIMITS.session - Duration::from_millis(1))
            .is_ok()
    );
    assert_eq!(
        sessions.attested(&opened.id, now + LIMITS.session),
        Err(Error::Unknown)
    );
    sessions.sweep(now + LIMITS.session);
    assert!(sessions.is_empty());
}

#[test]
fn the_number_of_sessions_is_limited_and_expired_ones_make_room() {
    let (sessions, now) = (sessions(), Instant::now());
    for client in [CLIENT, CLIENT, OTHER] {
        open(&sessions, client, now).unwrap();
    }
    assert_eq!(
        open(&sessions, CLIENT, now).err(),
        Some(Error::Full),
        "of one client"
    );
    open(&sessions, OTHER, now).unwrap();
    assert_eq!(
        open(&sessions, "192.0.2.3".parse().unwrap(), now).err(),
        Some(Error::Full)
    );
    assert!(open(&sessions, CLIENT, now + LIMITS.nonce).is_ok());
    assert_eq!(sessions.len(), 1);
}

#[test]
fn cookies_and_nonces_differ() {
    let (sessions, now) = (sessions(), Instant::now());
    let (one, two) = (
        open(&sessions, CLIENT, now).unwrap(),
        open(&sessions, CLIENT, now).unwrap(),
    );
    assert_ne!(one.cookie, two.cookie);
    assert_ne!(one.nonce, two.nonce);
    assert_eq!(
        sessions.take_challenge(&session_id("x"), now),
        Err(Error::Unknown)
    );
}
