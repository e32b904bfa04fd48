//! Who gets which TEE, and that nobody gets less than was asked for.

use super::*;
use anyhow::anyhow;

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

#[test]
fn files_of_identity_blocks_have_their_length() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, length: usize| {
        let path = dir.path().join(name);
        std::fs::write(&path, vec![0; length]).unwrap();
        path
    };
    let settings = |block: usize, authentication: usize| TeeSettings {
        id_block: Some(write("block", block)),
        id_auth: Some(write("auth", authentication)),
        ..TeeSettings::default()
    };
    assert!(identity(&settings(96, 4096)).unwrap().is_some());
    for (block, authentication) in [(95, 4096), (97, 4096), (96, 4095), (96, 5000)] {
        let error = identity(&settings(block, authentication))
            .unwrap_err()
            .to_string();
        assert!(error.contains(", expected "), "{error}");
    }
    let alone = TeeSettings {
        id_block: Some(write("block", 96)),
        ..TeeSettings::default()
    };
    assert!(identity(&alone).is_err());
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
