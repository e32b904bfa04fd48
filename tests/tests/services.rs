//! Services from Debian's packages as containers: a port, a volume, and clients of the same packages in the host's network. What the
//! clients see, before and after stops and kills, must be what they see with crun.

use crate::podman::Podman;
use crate::podman_shell::{Shell, same};
use e2e::process::eventually;
use e2e::{Finished, Run, bed, pattern, rounds};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Once;

/// What podman runs: the root file system as it is, under an overlay of each container. (To import 222 MB takes podman more than ten minutes
/// in the emulated machine.)
fn image() -> String {
    format!("--rootfs {}:O", bed().services().display())
}

/// Plays a scene with either runtime, with the root file system converted.
#[track_caller]
fn same_services(scene: impl Fn(&mut Shell)) {
    static CONVERT: Once = Once::new();
    CONVERT.call_once(|| {
        let podman = Podman::new();
        let image = image();
        let convert = ["run", "--rm", "--network", "none"]
            .into_iter()
            .chain(image.split(' '));
        let convert: Vec<_> = convert.chain(["true"]).collect();
        let done = podman.command(&convert).deadline(600).finish().ok();
        eprintln!("converted in {:.1?}", done.took);
    });
    same(scene);
}

/// A client, words as a shell reads them, in the host's network.
fn client(words: &str) -> Run {
    let line = format!("exec chroot {} {words}", bed().services().display());
    Run::new("sh")
        .args(["-c", &line])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .deadline(300)
}

/// What it says once it succeeds, for a service that is about to come up.
fn at_last(words: &str) -> String {
    eventually(words, 900, || {
        let done: Finished = client(words).finish();
        (done.code == 0).then(|| done.text())
    })
}

/// Runs a client and notes what it said.
fn ask(podman: &mut Shell, words: &str) {
    let done = client(words).finish();
    podman.note(format!("{words}: {}, {:?}", done.code, done.text()));
    if done.code != 0 {
        eprintln!("{words}: {}", done.stderr);
    }
}

/// Where a volume is on the host.
fn place(volume: &str) -> PathBuf {
    let format = ["volume", "inspect", "--format", "{{.Mountpoint}}", volume];
    Run::new("podman").args(format).finish().ok().text().trim().into()
}

const EXIT_CODE: &str = "inspect --format '{{.State.Status}} {{.State.ExitCode}}'";

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn nginx_serves_and_logs() {
    let image = image();
    same_services(|podman| {
        podman.ok(&format!(
            "run --detach --name web --publish 8080:80 --volume html:/var/www/html --volume log:/var/log/nginx {image} nginx -g 'daemon off;'"
        ));
        let get = "curl -s http://127.0.0.1:8080";
        // Of the image, which the volume begins with.
        podman.note(at_last(&format!("{get}/")));
        // Put there by the host; sent with sendfile(2).
        let bytes = pattern::bytes(8 << 20);
        fs::write(place("html").join("large"), &bytes).unwrap();
        ask(podman, &format!("sh -c '{get}/large | sha256sum'"));
        ask(
            podman,
            &format!("sh -c '{get}/large --range 1000001-3000003 | sha256sum'"),
        );
        ask(
            podman,
            &format!("{get}/none --output /dev/null --write-out '%{{http_code}}'"),
        );
        // Put there by the container, and changed by the host.
        podman.say("exec web sh -c 'echo inside >/var/www/html/page'");
        ask(podman, &format!("{get}/page"));
        fs::write(place("html").join("page"), "outside, and longer\n").unwrap();
        ask(podman, &format!("{get}/page"));
        podman.say("stop --time 30 web");
        podman.say(&format!("{EXIT_CODE} web"));
        podman.say("start web");
        at_last(&format!("{get}/page"));
        ask(podman, &format!("sh -c '{get}/large | sha256sum'"));
        podman.say("kill web");
        podman.say("wait web");
        // Each was written before its answer was: from both lives.
        let log = fs::read_to_string(place("log").join("access.log")).unwrap();
        for wanted in [
            "GET /large HTTP/1.1\" 200",
            "GET /none HTTP/1.1\" 404",
            "GET /large HTTP/1.1\" 206",
        ] {
            podman.note(format!("{wanted}: {}", log.matches(wanted).count()));
        }
        podman.ok("rm web");
        podman.ok("volume rm html log");
    });
}

/// Makes a cluster with checksums in the volume, if there is none, and runs the server as its user.
const POSTGRES: &str = r#"set -e; bin=$(echo /usr/lib/postgresql/*/bin); data=/var/lib/postgresql/data; as="setpriv --reuid postgres --regid postgres --init-groups";
            if [ ! -s $data/PG_VERSION ]; then $as $bin/initdb --data-checksums --auth trust $data >/dev/null; echo host all all all trust >>$data/pg_hba.conf; fi;
            exec $as $bin/postgres -D $data -c listen_addresses=\*"#;

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn postgresql_keeps_what_it_committed() {
    let image = image();
    same_services(|podman| {
        podman.ok(&format!(
            "run --detach --name db --publish 5432:5432 --stop-signal INT --volume pg:/var/lib/postgresql {image} sh -c '{POSTGRES}'"
        ));
        let at = "-h 127.0.0.1 -U postgres";
        let up = format!("psql {at} -Atqc 'select 1'");
        at_last(&up);
        let data = fs::metadata(place("pg").join("data")).unwrap();
        podman.note(format!("data: {}:{} {:o}", data.uid(), data.gid(), data.mode()));
        ask(
            podman,
            &format!(
                "psql {at} -c 'create table t as select n, md5(n::text) m from generate_series(1, 20000) n' -c 'create index on t (m)'"
            ),
        );
        let sum =
            format!("psql {at} -Atc \"select count(*), md5(string_agg(m, chr(44) order by n)) from t\"");
        ask(podman, &sum);
        // Four at a time, each commit on the disk.
        let bench = "sh -c 'exec /usr/lib/postgresql/*/bin/pgbench \"$@\"' -";
        client(&format!("{bench} {at} --initialize --quiet postgres"))
            .finish()
            .ok();
        let transactions = rounds(25, 500);
        let run = |seed| {
            client(&format!(
                "{bench} {at} --client 4 --transactions {transactions} --random-seed {seed} postgres"
            ))
        };
        run(1).deadline(900).finish().ok();
        let books = format!(
            "psql {at} -Atc 'select (select count(*) from pgbench_history), (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
                (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)'"
        );
        ask(podman, &books);
        podman.say("stop --time 60 db");
        podman.say(&format!("{EXIT_CODE} db"));
        podman.say("start db");
        at_last(&up);
        ask(podman, &sum);
        ask(podman, &books);
        run(2).deadline(900).finish().ok();
        // Without a chance to end well: it recovers from its log.
        podman.say("kill db");
        podman.say("wait db");
        podman.say("start db");
        at_last(&up);
        ask(podman, &sum);
        ask(podman, &books);
        ask(
            podman,
            &format!(
                "sh -c 'exec /usr/lib/postgresql/*/bin/pg_amcheck \"$@\"' - {at} --install-missing --heapallindexed postgres"
            ),
        );
        podman.say("stop --time 60 db");
        podman.ok("rm db");
        podman.ok("volume rm pg");
    });
}

#[test]
#[ignore = "needs KVM: run in the testbed"]
fn redis_keeps_what_it_acknowledged() {
    let image = image();
    same_services(|podman| {
        podman.ok(&format!(
            "run --detach --name kv --publish 6379:6379 --volume kv:/var/lib/redis {image}
            setpriv --reuid redis --regid redis --init-groups redis-server --dir /var/lib/redis --protected-mode no --enable-debug-command yes --appendonly yes --appendfsync always --save 1 1"
        ));
        let up = "redis-cli -e ping";
        podman.note(at_last(up));
        ask(podman, "redis-cli set greeting hello");
        ask(podman, "redis-cli debug populate 2000 key 100");
        ask(podman, "redis-cli config get dir");
        // Children write the database and a new log beside the server.
        for (begin, done) in [("bgsave", "rdb"), ("bgrewriteaof", "aof")] {
            client(&format!("redis-cli -e {begin}")).finish();
            eventually(begin, 120, || {
                let info = client("redis-cli info persistence").finish().ok().text();
                let running = [
                    format!("{done}_bgsave_in_progress:1"),
                    format!("{done}_rewrite_in_progress:1"),
                    format!("{done}_rewrite_scheduled:1"),
                ];
                (!running.iter().any(|line| info.contains(line))).then_some(())
            });
        }
        ask(
            podman,
            "sh -c 'redis-cli info persistence | grep -E \"last_bgsave_status|last_bgrewrite_status|last_write_status|aof_enabled\"'",
        );
        ask(podman, "redis-cli set greeting goodbye");
        ask(
            podman,
            "sh -c 'redis-benchmark -q -n 200 -c 10 -t incr,lpush >/dev/null'",
        );
        let all = "sh -c 'for c in dbsize \"get greeting\" \"get counter:__rand_int__\" \"llen mylist\" \"get key:1999\"; do redis-cli $c; done'";
        ask(podman, all);
        podman.say("stop --time 60 kv");
        podman.say(&format!("{EXIT_CODE} kv"));
        podman.say("start kv");
        at_last(up);
        ask(podman, all);
        ask(podman, "redis-cli set greeting again");
        podman.say("kill kv");
        podman.say("wait kv");
        podman.say("start kv");
        at_last(up);
        ask(podman, all);
        podman.say("stop --time 60 kv");
        let owner = fs::metadata(place("kv").join("dump.rdb")).unwrap();
        podman.note(format!(
            "dump: {}:{} {:o}",
            owner.uid(),
            owner.gid(),
            owner.mode()
        ));
        podman.ok("rm kv");
        podman.ok("volume rm kv");
    });
}
