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
fn a_full_table_gives_the_place_of_the_oldest_state() {
    let (sessions, now) = (sessions(), Instant::now());
    let at = |seconds| now + Duration::from_secs(seconds);
    let first = open(&sessions, CLIENT, at(0)).unwrap();
    let second = open(&sessions, CLIENT, at(1)).unwrap();
    sessions.take_challenge(&first.id, at(5)).unwrap();
    sessions.attest(&first.id, 7, at(5)).unwrap();
    let others = [2, 3].map(|seconds| open(&sessions, OTHER, at(seconds)).unwrap());

    assert_eq!(
        open(&sessions, CLIENT, at(10)).err(),
        Some(Error::Full),
        "all are new"
    );
    let third = open(&sessions, CLIENT, at(11)).unwrap();
    assert_eq!(
        sessions.take_challenge(&second.id, at(11)).err(),
        Some(Error::Unknown)
    );
    assert!(sessions.attested(&first.id, at(11)).is_ok(), "attested later");
    let fourth = open(&sessions, CLIENT, at(15)).unwrap();
    assert_eq!(sessions.attested(&first.id, at(15)), Err(Error::Unknown));

    // A client that is new takes its place from all.
    open(&sessions, "192.0.2.3".parse().unwrap(), at(16)).unwrap();
    assert_eq!(
        sessions.take_challenge(&others[0].id, at(16)).err(),
        Some(Error::Unknown)
    );
    for kept in [&others[1], &third, &fourth] {
        assert!(sessions.take_challenge(&kept.id, at(16)).is_ok());
    }
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
