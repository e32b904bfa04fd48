//! Who gets which TEE, and that nobody gets less than was asked for.

use super::*;
use anyhow::anyhow;
use p384::NonZeroScalar;
use tee::ecdsa::{PublicKey, Signature};
use tee::launch::Policy;

fn able() -> Result<()> {
    Ok(())
}

fn unable() -> Result<()> {
    Err(anyhow!("the processor has no SEV-SNP"))
}

fn refused(annotated: Option<Wish>, sev: Option<&str>, default: Wish) -> String {
    let result = decide(annotated, sev, default, unable);
    format!("{:#}", result.expect_err("a TEE that can't be had is an error"))
}

#[test]
fn without_a_wish_there_is_none() {
    assert_eq!(decide(None, None, Wish::None, able).unwrap(), None);
    assert_eq!(decide(Some(Wish::None), None, Wish::None, unable).unwrap(), None);
}

#[test]
fn auto_takes_what_the_machine_has() {
    for (annotated, default) in [(Some(Wish::Auto), Wish::None), (None, Wish::Auto)] {
        assert_eq!(
            decide(annotated, None, default, able).unwrap(),
            Some(TeeKind::Snp)
        );
        assert_eq!(decide(annotated, None, default, unable).unwrap(), None);
    }
}

#[test]
fn a_tee_that_was_asked_for_never_becomes_none() {
    for annotated in [None, Some(Wish::Auto), Some(Wish::Snp)] {
        let error = refused(annotated, Some("flavor: \"sev\""), Wish::None);
        assert_eq!(
            error,
            "flavor: \"sev\": SEV-SNP is demanded and can't be had here: the processor has no SEV-SNP"
        );
    }
    let error = refused(Some(Wish::Snp), None, Wish::None);
    assert!(
        error.starts_with("config.json: annotation io.cwrun.tee: SEV-SNP is demanded"),
        "{error}"
    );
    for annotated in [None, Some(Wish::Auto)] {
        let error = refused(annotated, None, Wish::Snp);
        assert!(error.starts_with("cwrun.toml: tee.kind"), "{error}");
    }
}

#[test]
fn wishes_that_contradict_each_other_are_refused() {
    for wish in [Wish::None, Wish::Sim] {
        let error = decide(Some(wish), Some("krun.variant: \"sev\""), Wish::None, able).unwrap_err();
        assert!(
            error.to_string().contains("contradicts krun.variant: \"sev\""),
            "{error}"
        );
    }
}

#[test]
fn a_simulation_is_had_anywhere_and_only_by_name() {
    for (annotated, default) in [(Some(Wish::Sim), Wish::None), (None, Wish::Sim)] {
        assert_eq!(
            decide(annotated, None, default, unable).unwrap(),
            Some(TeeKind::Sim)
        );
    }
    assert_eq!(decide(Some(Wish::Auto), None, Wish::None, unable).unwrap(), None);
    assert!(parse_wish("simulation").is_err());
}

const DIGEST: LaunchDigest = LaunchDigest([5; 48]);

fn block() -> IdBlock {
    IdBlock {
        digest: DIGEST,
        family_id: [1; 16],
        image_id: [2; 16],
        guest_svn: 3,
        policy: TeeSettings::default().policy,
    }
}

/// By an ID key, vouched for by an author's key if asked.
fn sign(block: &IdBlock, author: bool) -> IdAuth {
    let [id, author_key] = [1, 2].map(|byte| NonZeroScalar::try_from(&[byte; 48][..]).unwrap());
    let id_key = PublicKey::of(&id);
    IdAuth {
        block_signature: Signature::sign(&id, &block.to_bytes()),
        author: author.then(|| {
            let signature = Signature::sign(&author_key, &id_key.to_bytes());
            (signature, PublicKey::of(&author_key))
        }),
        id_key,
    }
}

/// What becomes of these files.
fn owned(block: &[u8], authentication: &[u8]) -> Result<Option<Owner>> {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Some(path)
    };
    let settings = TeeSettings {
        id_block: write("block", block),
        id_auth: write("auth", authentication),
        ..TeeSettings::default()
    };
    owner(&settings, DIGEST)
}

#[test]
fn files_of_identity_blocks_have_their_length() {
    let (block, auth) = (
        block().to_bytes().to_vec(),
        sign(&block(), false).to_bytes().to_vec(),
    );
    assert!(owned(&block, &auth).unwrap().is_some());
    let longer = |bytes: &[u8]| [bytes, &[0]].concat();
    for (block, auth) in [
        (&block[1..], &auth[..]),
        (&longer(&block), &auth),
        (&block, &auth[1..]),
        (&block, &longer(&auth)),
    ] {
        let error = owned(block, auth).err().unwrap().to_string();
        assert!(error.contains(", expected "), "{error}");
    }
    let alone = TeeSettings {
        id_block: Some("/block".into()),
        ..TeeSettings::default()
    };
    let error = owner(&alone, DIGEST).err().unwrap().to_string();
    assert!(error.contains("belong together"), "{error}");
}

#[test]
fn an_identity_block_for_another_launch_is_refused_before_the_firmware_sees_it() {
    let refused = |block: IdBlock, auth: &IdAuth| {
        let error = owned(&block.to_bytes(), &auth.to_bytes()[..]).err().unwrap();
        format!("{error:#}")
    };
    let digest = IdBlock {
        digest: LaunchDigest([6; 48]),
        ..block()
    };
    let error = refused(digest, &sign(&digest, false));
    assert!(error.contains("it is for launch digest 0606"), "{error}");
    let policy = IdBlock {
        policy: Policy::STRICT,
        ..block()
    };
    let error = refused(policy, &sign(&policy, false));
    assert!(
        error.contains("it is for guest policy abi=0.0, and tee.policy is abi=0.0,smt"),
        "{error}"
    );
    let error = refused(block(), &sign(&policy, false));
    assert!(error.contains("the signature of the ID block"), "{error}");
}

#[test]
fn an_identity_block_reaches_the_firmware_as_it_is_and_the_reports() {
    for author in [false, true] {
        let auth = sign(&block(), author);
        let owner = owned(&block().to_bytes(), &auth.to_bytes()[..]).unwrap().unwrap();
        let passed = owner.for_firmware();
        assert_eq!(passed.block, block().to_bytes());
        assert_eq!(passed.authentication, auth.to_bytes());
        assert_eq!(passed.author, author);
        let guest = tee::sim::Guest {
            measurement: DIGEST,
            host_data: tee::report::HostData([7; 32]),
            policy: block().policy,
            identity: Some(owner.for_reports()),
        };
        let report = guest.attest(tee::report::ReportData([8; 64])).report;
        assert_eq!(report.guest_svn(), 3);
        assert_eq!(report.id_key_digest(), KeyDigest::of(&auth.id_key));
        let author_key = report.author_key_digest();
        assert_eq!(author_key != KeyDigest([0; 48]), author);
    }
}

#[test]
fn a_sealed_workload_gets_the_tee_that_it_demands_or_none_at_all() {
    use TeeKind::{Sim, Snp};
    let no = None;
    for (kind, annotated, default) in [
        (Snp, no, Wish::None),
        (Snp, Some(Wish::Snp), Wish::Snp),
        (Snp, Some(Wish::Auto), Wish::None),
        (Snp, no, Wish::Sim),
        (Sim, no, Wish::None),
        (Sim, Some(Wish::Sim), Wish::Snp),
        (Sim, Some(Wish::Auto), Wish::Auto),
    ] {
        agree(kind, annotated, None, default).unwrap();
    }
    for (kind, annotated, sev, default, by) in [
        (Snp, Some(Wish::None), None, Wish::None, "io.cwrun.tee: \"none\""),
        (Snp, Some(Wish::Sim), None, Wish::None, "io.cwrun.tee: \"sim\""),
        (Sim, Some(Wish::Snp), None, Wish::None, "io.cwrun.tee: \"snp\""),
        (Sim, Some(Wish::None), None, Wish::None, "io.cwrun.tee: \"none\""),
        (Sim, no, None, Wish::Snp, "cwrun.toml: tee.kind"),
        (Sim, Some(Wish::Auto), None, Wish::Snp, "cwrun.toml: tee.kind"),
        (Sim, Some(Wish::Sim), Some("flavor"), Wish::None, "flavor"),
    ] {
        let error = format!("{:#}", agree(kind, annotated, sev, default).unwrap_err());
        assert!(error.contains(by), "{error}");
    }
}

/// What an image of mkcw gets whose passphrase is with a broker, by this annotation and this default.
fn of_mkcw(annotated: Option<&str>, default: Wish, support: fn() -> Result<()>) -> Result<TeeKind, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    let mut config =
        serde_json::json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "annotations": {}});
    if let Some(wish) = annotated {
        config["annotations"][annotations::TEE] = wish.into();
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bundle = Bundle::load(dir.path(), None).unwrap();
    let mut settings = Settings::default();
    settings.tee.kind = default;
    of_mkcw_where(&bundle, &settings, support)
        .map(|tee| tee.kind)
        .map_err(|error| format!("{error:#}"))
}

#[test]
fn an_image_of_mkcw_demands_sev_snp_and_is_content_with_a_simulation_where_somebody_here_says_so() {
    for annotated in [None, Some("snp"), Some("auto")] {
        assert_eq!(of_mkcw(annotated, Wish::None, able), Ok(TeeKind::Snp));
        let error = of_mkcw(annotated, Wish::None, unable).unwrap_err();
        assert!(
            error.ends_with("SEV-SNP is demanded and can't be had here: the processor has no SEV-SNP"),
            "{error}"
        );
    }
    let error = of_mkcw(None, Wish::None, unable).unwrap_err();
    assert!(error.starts_with("/krun-sev.json in the image: "), "{error}");
    assert_eq!(of_mkcw(Some("sim"), Wish::None, unable), Ok(TeeKind::Sim));
    assert_eq!(of_mkcw(None, Wish::Sim, unable), Ok(TeeKind::Sim));
    let error = of_mkcw(Some("none"), Wish::None, able).unwrap_err();
    assert!(error.contains("\"none\" contradicts /krun-sev.json"), "{error}");
}
