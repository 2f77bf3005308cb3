//! Containers through a real shim. Needs root.

mod common;

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use common::{DEADLINE, host, until};
use node::runtime::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_leaves_nothing() {
    let host = host("basic").await;
    let started = Instant::now();
    let sandbox = host.runtime.create_sandbox(&host.sandbox("u1")).await.unwrap();
    println!("sandbox: {:?}", started.elapsed());
    assert!(sandbox.netns.as_ref().unwrap().exists());
    let spec = ContainerSpec {
        env: vec![("FROM_POD".into(), "two words".into())],
        ..host.container(
            "u1",
            "hostname; echo $FROM_IMAGE $FROM_POD; echo err >&2; ip link show lo | grep -c UP; printf end; exit 7",
        )
    };
    let started = Instant::now();
    let mut events = host.runtime.events();
    let id = host.runtime.create_container(&spec).await.unwrap();
    println!("create: {:?}", started.elapsed());
    assert!(matches!(host.runtime.status("u1").await.unwrap()[0].state, RunState::Created));
    let started = Instant::now();
    host.runtime.start(&id).await.unwrap();
    println!("start: {:?}", started.elapsed());
    let exit = host.exit(&id, &mut events).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    let mut lines: Vec<String> = host.text(&host.log("u1")).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["1", "1 two words", "end", "err", "pod-host"]);
    assert_eq!(host.runtime.images_in_use().len(), 1);
    host.runtime.remove(&id).await.unwrap();
    assert!(host.runtime.status("u1").await.unwrap().is_empty());
    host.runtime.remove_sandbox("u1").await.unwrap();
    host.runtime.remove_sandbox("u1").await.unwrap();
    host.assert_gone("u1");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_only_what_it_should() {
    let host = host("confined").await;
    host.runtime.create_sandbox(&host.sandbox("u2")).await.unwrap();
    let script = "grep -E '^(Cap|NoNew|Seccomp:|Sig(Ign|Blk))' /proc/self/status; ls /proc/self/fd | wc -l; \
         mkdir /sys/fs/cgroup/memory/x 2>/dev/null && echo writable-cgroup; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; \
         unshare -m true 2>/dev/null && echo unshared; readlink /proc/self/exe; \
         (echo x > /proc/sys/kernel/hostname) 2>/dev/null && echo renamed; head -c1 /proc/kcore | wc -c; echo done";
    let (exit, text) = host.output(&host.container("u2", script)).await;
    assert_eq!(exit.code, 0, "{text}");
    let value =
        |field: &str| text.lines().find_map(|l| l.strip_prefix(field)).map(|v| v.trim().to_owned()).unwrap_or_default();
    assert_eq!(value("CapInh:"), "0000000000000000", "{text}");
    assert_eq!(value("CapAmb:"), "0000000000000000", "{text}");
    assert!(value("CapEff:").ends_with("a80425fb"), "{text}");
    assert_eq!(value("Seccomp:"), "2", "{text}");
    assert_eq!(value("NoNewPrivs:"), "0", "{text}");
    assert_eq!(value("SigIgn:"), "0000000000000000", "{text}");
    assert_eq!(value("SigBlk:"), "0000000000000000", "{text}");
    for forbidden in ["writable-cgroup", "mounted", "unshared", "renamed"] {
        assert!(!text.contains(forbidden), "{text}");
    }
    // 0, 1, 2 and the directory `ls` itself has open.
    assert!(text.lines().any(|l| l == "4"), "{text}");
    let strict = ContainerSpec {
        name: "strict".into(),
        user: UserSpec { uid: Some(101), ..Default::default() },
        security: Security {
            no_new_privs: true,
            capabilities_drop: vec!["ALL".into()],
            read_only_rootfs: true,
            ..Default::default()
        },
        log_path: host.dir.join("logs/u2/strict.log"),
        ..host.container(
            "u2",
            "id -u; id -G; grep -E '^(CapBnd|NoNew|Seccomp:)' /proc/self/status; touch /tmp/x || echo read-only",
        )
    };
    let (_, text) = host.output(&strict).await;
    assert!(text.lines().any(|l| l == "101"), "{text}");
    assert!(text.contains("102 200") && text.contains("read-only"), "{text}");
    assert!(
        text.contains("CapBnd:\t0000000000000000") && text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"),
        "{text}"
    );
    let open = ContainerSpec {
        name: "open".into(),
        security: Security { privileged: true, ..Default::default() },
        log_path: host.dir.join("logs/u2/open.log"),
        ..host.container("u2", "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted; ls /dev")
    };
    let (_, text) = host.output(&open).await;
    assert!(text.contains("Seccomp:\t0") && text.contains("mounted"), "{text}");
    host.runtime.remove_sandbox("u2").await.unwrap();
    host.assert_gone("u2");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_as_confined_as_its_container() {
    let host = host("exec").await;
    host.runtime.create_sandbox(&host.sandbox("u3")).await.unwrap();
    let spec = ContainerSpec {
        user: UserSpec { uid: Some(101), ..Default::default() },
        ..host.container("u3", "exec sleep 1000")
    };
    let id = host.run(&spec).await;
    let words = |w: &[&str]| w.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let script = "id -u; grep -E '^(Cap|NoNew|Seccomp:|SigIgn)' /proc/self/status; echo $FROM_IMAGE; ls /proc/self/fd | wc -l; exit 3";
    let started = Instant::now();
    let out = host.runtime.exec_sync(&id, &words(&["sh", "-c", script]), DEADLINE).await.unwrap();
    println!("exec: {:?}", started.elapsed());
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code, 3, "{text} {}", String::from_utf8_lossy(&out.stderr));
    assert!(text.starts_with("101\n"), "{text}");
    for want in [
        "Seccomp:\t2",
        "NoNewPrivs:\t0",
        "CapInh:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "SigIgn:\t0000000000000000",
    ] {
        assert!(text.contains(want), "{want} in {text}");
    }
    assert!(text.ends_with("1\n4\n"), "{text}");
    let slow = host.runtime.exec_sync(&id, &words(&["sleep", "1000"]), Duration::from_millis(300)).await;
    assert!(matches!(slow, Err(Error::Timeout { .. })), "{slow:?}");
    let missing = host.runtime.exec_sync(&id, &words(&["no-such-program"]), DEADLINE).await.unwrap_err().to_string();
    assert!(missing.contains("executable file not found in $PATH"), "{missing}");
    let ps = ["ps".to_owned()];
    let pids = || host.runtime.exec_sync(&id, &ps, DEADLINE);
    let end = Instant::now() + DEADLINE;
    while String::from_utf8(pids().await.unwrap().stdout).unwrap().matches("sleep 1000").count() > 1 {
        assert!(Instant::now() < end, "the timed out process lives on");
    }
    // Streams: what goes in comes out, and the end of input ends it.
    let mut session = host
        .runtime
        .exec(&id, ExecSpec { command: words(&["cat"]), stdin: true, stdout: true, stderr: true, ..Default::default() })
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through and through").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), session.wait().await.unwrap().code), ("through and through", 0));
    // A terminal, with a size.
    let mut session = host
        .runtime
        .exec(&id, ExecSpec { command: words(&["sh"]), stdin: true, stdout: true, tty: true, ..Default::default() })
        .await
        .unwrap();
    session.resizer.as_ref().unwrap().resize(101, 33).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"stty size; exit 5\n").await.unwrap();
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.contains("33 101"), "{text}");
    assert_eq!(session.wait().await.unwrap().code, 5);
    host.runtime.remove_sandbox("u3").await.unwrap();
    host.assert_gone("u3");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_shares_what_pods_share() {
    let host = host("shared").await;
    let sandbox = SandboxSpec {
        share_process_namespace: true,
        sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())].into(),
        ..host.sandbox("u4")
    };
    host.runtime.create_sandbox(&sandbox).await.unwrap();
    let first = ContainerSpec {
        security: Security { capabilities_add: vec!["SYS_PTRACE".into()], ..Default::default() },
        ..host.container("u4", "echo from-first > /dev/shm/x; exec sleep 1000")
    };
    let first = host.run(&first).await;
    let second = ContainerSpec {
        name: "second".into(),
        log_path: host.dir.join("logs/u4/second.log"),
        security: Security { capabilities_add: vec!["SYS_PTRACE".into()], ..Default::default() },
        ..host.container("u4", "while ! cat /dev/shm/x 2>/dev/null; do true; done; ps; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
             echo root: $(ls /proc/1/root 2>/dev/null); echo fds: $(ls /proc/1/fd 2>/dev/null); readlink /proc/self/ns/net; readlink /proc/self/ns/ipc")
    };
    let (_, text) = host.output(&second).await;
    assert!(text.contains("from-first") && text.contains("sleep 1000"), "{text}");
    assert!(text.contains("\n0\n"), "{text}");
    // Not even with CAP_SYS_PTRACE is there anything of the node behind the first process.
    assert!(text.contains("root:\nfds:") || text.contains("root: \nfds: "), "{text}");
    let out = host.runtime.exec_sync(&first, &["readlink".into(), "/proc/self/ns/net".into()], DEADLINE).await.unwrap();
    assert!(text.contains(String::from_utf8(out.stdout).unwrap().trim()), "{text}");
    host.runtime.remove_sandbox("u4").await.unwrap();
    host.assert_gone("u4");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_the_agent_and_are_found_again() {
    let host = host("adopt").await;
    host.runtime.create_sandbox(&host.sandbox("u5")).await.unwrap();
    let id = host.run(&host.container("u5", "trap 'exit 9' TERM; while true; do sleep 0.01; done")).await;
    let before = host.runtime.status("u5").await.unwrap()[0].pid;
    assert!(before.is_some());
    // Another runtime on the same directories is what a restarted agent is.
    let again = Runtime::open(common::config(&host.dir, &host.name)).unwrap();
    let mut events = again.events();
    let found = again.sandboxes().await.unwrap();
    assert_eq!((found.len(), found[0].state, found[0].spec.hostname.as_str()), (1, SandboxState::Ready, "pod-host"));
    assert_eq!(again.status("u5").await.unwrap()[0].pid, before);
    again.signal(&id, 15).await.unwrap();
    let event = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
    assert_eq!(
        event,
        RuntimeEvent { pod_uid: "u5".into(), what: RuntimeChange::Exited { name: "main".into(), attempt: 0 } }
    );
    let RunState::Exited(exit) = &again.status("u5").await.unwrap()[0].state else { panic!("it has exited") };
    assert_eq!(exit.code, 9);
    // The shim dies: exits it wrote down are still known, and the pod can be removed.
    let pid: i32 = fs::read_to_string(host.dir.join("run/pods/u5/shim.pid")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let event = tokio::time::timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
    assert_eq!(event.what, RuntimeChange::ShimLost);
    assert_eq!(again.sandboxes().await.unwrap()[0].state, SandboxState::Dead);
    let RunState::Exited(exit) = &again.status("u5").await.unwrap()[0].state else { panic!("it has exited") };
    assert_eq!(exit.code, 9);
    again.remove_sandbox("u5").await.unwrap();
    host.assert_gone("u5");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shim_s_running_containers_are_ended_with_the_pod() {
    let host = host("orphans").await;
    host.runtime.create_sandbox(&host.sandbox("u6")).await.unwrap();
    host.run(&host.container("u6", "exec sleep 1000")).await;
    let container = host.runtime.status("u6").await.unwrap()[0].pid.unwrap();
    let pid: i32 = fs::read_to_string(host.dir.join("run/pods/u6/shim.pid")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    host.runtime.remove_sandbox("u6").await.unwrap();
    host.assert_gone("u6");
    until("the container's process ends", || {
        fs::read_to_string(format!("/proc/{container}/stat")).map_or(true, |s| s.contains(") Z"))
    })
    .await;
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_their_breach_is_told() {
    let host = host("limits").await;
    host.runtime.create_sandbox(&host.sandbox("u7")).await.unwrap();
    let spec = ContainerSpec {
        resources: Resources {
            memory_limit: Some(16 << 20),
            pids_limit: Some(10),
            cpu_shares: Some(512),
            ..Default::default()
        },
        ..host.container("u7", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; tail -c 60000000 /dev/zero | tail -n 1")
    };
    let (exit, text) = host.output(&spec).await;
    assert!(exit.oom_killed || exit.code == 137 || text.contains("Killed"), "{exit:?} {text}");
    let spec = ContainerSpec {
        name: "greedy".into(),
        resources: Resources { memory_limit: Some(16 << 20), ..Default::default() },
        log_path: host.dir.join("logs/u7/greedy.log"),
        ..host.container("u7", "exec tail -n 1 /dev/zero")
    };
    let (exit, text) = host.output(&spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true), "{text}");
    host.runtime.remove_sandbox("u7").await.unwrap();
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let host = host("broken").await;
    host.runtime.create_sandbox(&host.sandbox("u8")).await.unwrap();
    let base = host.container("u8", "true");
    let file = host.dir.join("a-file");
    fs::write(&file, "x").unwrap();
    let cases = [
        (ContainerSpec { command: vec!["/no/such".into()], ..base.clone() }, "no such file"),
        (ContainerSpec { command: vec!["nothing-here".into()], ..base.clone() }, "executable file not found in $PATH"),
        (ContainerSpec { image: "sha256:00".into(), ..base.clone() }, "not on this node"),
        (
            ContainerSpec { user: UserSpec { must_not_be_root: true, ..Default::default() }, ..base.clone() },
            "runAsNonRoot",
        ),
        (ContainerSpec { working_dir: Some("/etc/passwd/x".into()), ..base.clone() }, "chdir"),
        (
            ContainerSpec {
                mounts: vec![Mount {
                    host_path: "/no/such/path".into(),
                    container_path: "/x".into(),
                    read_only: false,
                    propagation: Propagation::None,
                }],
                ..base.clone()
            },
            "/no/such/path",
        ),
        (
            ContainerSpec {
                mounts: vec![Mount {
                    host_path: file.clone(),
                    container_path: "/x/../../y".into(),
                    read_only: false,
                    propagation: Propagation::None,
                }],
                ..base.clone()
            },
            "..",
        ),
        (ContainerSpec { name: "../../etc".into(), ..base.clone() }, "no name"),
        (ContainerSpec { working_dir: Some("/proc/self/fd/7".into()), ..base.clone() }, ""),
    ];
    for (spec, want) in cases {
        let error = host.runtime.create_container(&spec).await.expect_err(want).to_string();
        let source = error.clone();
        assert!(source.contains(want), "{want:?} in {error:?}");
        assert!(host.runtime.status("u8").await.unwrap().is_empty(), "{want}");
    }
    let (exit, _) = host.output(&base).await;
    assert_eq!(exit.code, 0, "the pod is still good");
    assert!(matches!(host.runtime.create_sandbox(&host.sandbox("u8")).await, Err(Error::Invalid { .. })));
    host.runtime.remove_sandbox("u8").await.unwrap();
    host.assert_gone("u8");
    let unruly = SandboxSpec { sysctls: [("net.no.such".to_owned(), "1".to_owned())].into(), ..host.sandbox("u9") };
    let error = host.runtime.create_sandbox(&unruly).await.unwrap_err().to_string();
    assert!(error.contains("sysctl net.no.such=1"), "{error}");
    host.assert_gone("u9");
    assert!(host.runtime.create_sandbox(&host.sandbox("../x")).await.is_err());
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_talk_to_the_container() {
    let host = host("attach").await;
    host.runtime.create_sandbox(&host.sandbox("u10")).await.unwrap();
    for (name, tty) in [("plain", false), ("terminal", true)] {
        let spec = ContainerSpec {
            name: name.into(),
            stdin: true,
            stdin_once: true,
            tty,
            log_path: host.dir.join(format!("logs/u10/{name}.log")),
            ..host.container("u10", "read word; echo got $word; exit 4")
        };
        let id = host.runtime.create_container(&spec).await.unwrap();
        let mut session =
            host.runtime.attach(&id, AttachSpec { stdin: true, stdout: true, stderr: !tty }).await.unwrap();
        host.runtime.start(&id).await.unwrap();
        if tty {
            session.resizer.as_ref().unwrap().resize(80, 25).await.unwrap();
        }
        session.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
        let mut text = String::new();
        let mut stdout = session.stdout.take().unwrap();
        tokio::time::timeout(DEADLINE, stdout.read_to_string(&mut text)).await.unwrap().unwrap();
        assert!(text.contains("got hello"), "{text:?}");
        assert_eq!(session.wait().await.unwrap().code, 4);
        assert!(host.text(&spec.log_path).contains("got hello"));
        host.runtime.remove(&id).await.unwrap();
    }
    // All of a large output arrives, however late it is read; the container waits meanwhile.
    let spec =
        ContainerSpec { name: "large".into(), ..host.container("u10", "head -c 3000000 /dev/zero; echo; echo end") };
    let id = host.runtime.create_container(&spec).await.unwrap();
    let mut session = host.runtime.attach(&id, AttachSpec { stdout: true, ..Default::default() }).await.unwrap();
    host.runtime.start(&id).await.unwrap();
    until("output is in the log", || fs::metadata(&spec.log_path).is_ok_and(|m| m.len() > 0)).await;
    let mut bytes = Vec::new();
    let mut stdout = session.stdout.take().unwrap();
    tokio::time::timeout(DEADLINE, stdout.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert_eq!(bytes.len(), 3_000_005);
    assert_eq!(session.wait().await.unwrap().code, 0);
    host.runtime.remove_sandbox("u10").await.unwrap();
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_what_they_say() {
    let host = host("mounts").await;
    host.runtime.create_sandbox(&host.sandbox("u11")).await.unwrap();
    let (shared, config) = (host.dir.join("shared"), host.dir.join("config"));
    fs::create_dir(&shared).unwrap();
    fs::write(&config, "from the node").unwrap();
    let mount = |host_path: &std::path::Path, container_path: &str, read_only: bool, propagation: Propagation| Mount {
        host_path: host_path.to_owned(),
        container_path: container_path.into(),
        read_only,
        propagation,
    };
    let spec = ContainerSpec {
        mounts: vec![
            mount(&shared, "/made/on/the/way", false, Propagation::None),
            mount(&shared, "/ro", true, Propagation::HostToContainer),
            mount(&config, "/etc/passwd", true, Propagation::None),
            mount(&config, "/new/file", false, Propagation::Bidirectional),
        ],
        ..host.container("u11", "echo x > /made/on/the/way/a; cat /ro/a; (echo y > /ro/b) 2>/dev/null || echo read-only; \
             cat /etc/passwd; echo; echo changed > /new/file; (echo z > /etc/passwd) 2>/dev/null || echo read-only-file")
    };
    let (_, text) = host.output(&spec).await;
    assert_eq!(text, "x\nread-only\nfrom the node\nread-only-file");
    assert_eq!(fs::read_to_string(&config).unwrap(), "changed\n");
    assert!(shared.join("a").exists() && !shared.join("b").exists());
    host.runtime.remove_sandbox("u11").await.unwrap();
    host.assert_gone("u11");
    assert!(shared.join("a").exists(), "removing a pod does not reach through its mounts");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_on_the_host_s_network_has_the_host_s_namespaces() {
    let host = host("hostnet").await;
    let sandbox = SandboxSpec { host_network: true, host_pid: true, host_ipc: true, ..host.sandbox("u12") };
    assert_eq!(host.runtime.create_sandbox(&sandbox).await.unwrap().netns, None);
    let spec =
        host.container("u12", "for n in net uts ipc pid mnt; do readlink /proc/self/ns/$n; done; sleep 1000 & echo");
    let (exit, text) = host.output(&spec).await;
    assert_eq!(exit.code, 0, "{text}");
    for (kind, same) in [("net", true), ("uts", true), ("ipc", true), ("pid", true), ("mnt", false)] {
        let own = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
        assert_eq!(text.contains(&own), same, "{kind}: {own} in {text}");
    }
    host.runtime.remove_sandbox("u12").await.unwrap();
    host.assert_gone("u12");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_images_do_not_reach_the_node() {
    let host = host("hostile").await;
    let outside = host.dir.join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.display().to_string();
    host.runtime.create_sandbox(&host.sandbox("u13")).await.unwrap();
    for (n, name) in
        ["proc", "sys", "dev", "dev/pts", "dev/null", "dev/shm", "sys/fs/cgroup", "etc/hosts"].into_iter().enumerate()
    {
        for (m, link) in [target.as_str(), "/", "../../../../../../..", "loop"].into_iter().enumerate() {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            tar.append_link(&mut header, name, link).unwrap();
            let layer = tar.into_inner().unwrap();
            let archive = host.dir.join("hostile.tar");
            let tag = format!("hostile:v{n}-{m}");
            fs::write(&archive, common::docker_archive(&tag, &[&common::busybox_layer(), &layer], "")).unwrap();
            let image = host.runtime.images().import(&archive).await.unwrap().remove(0);
            let hosts = host.dir.join("hosts");
            fs::write(&hosts, "hosts").unwrap();
            let mount = Mount {
                host_path: hosts,
                container_path: "/etc/hosts".into(),
                read_only: false,
                propagation: Propagation::None,
            };
            let spec = ContainerSpec {
                image: image.id,
                mounts: vec![mount],
                attempt: (n * 10 + m) as u32,
                ..host.container("u13", "true")
            };
            // Whether such an image runs is its own affair.
            if let Ok(id) = host.runtime.create_container(&spec).await {
                host.runtime.remove(&id).await.unwrap();
            }
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name} -> {link}");
        }
    }
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    host.runtime.remove_sandbox("u13").await.unwrap();
    host.assert_gone("u13");
    host.runtime.remove_rest().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_come_and_go_at_once() {
    const PODS: usize = 30;
    let host = std::sync::Arc::new(host("many").await);
    let started = Instant::now();
    let pods: Vec<_> = (0..PODS)
        .map(|n| {
            let host = host.clone();
            tokio::spawn(async move {
                let uid = format!("many-{n}");
                host.runtime.create_sandbox(&host.sandbox(&uid)).await.unwrap();
                host.run(&host.container(&uid, "exec sleep 1000")).await
            })
        })
        .collect();
    let mut ids = Vec::new();
    for pod in pods {
        ids.push(pod.await.unwrap());
    }
    println!("{PODS} pods run after {:?}", started.elapsed());
    let started = Instant::now();
    let ends: Vec<_> = ids
        .iter()
        .map(|id| {
            let (host, uid) = (host.clone(), id.pod_uid.clone());
            tokio::spawn(async move { host.runtime.remove_sandbox(&uid).await })
        })
        .collect();
    for end in ends {
        end.await.unwrap().unwrap();
    }
    println!("{PODS} pods gone after {:?}", started.elapsed());
    for id in &ids {
        host.assert_gone(&id.pod_uid);
    }
    host.runtime.remove_rest().unwrap();
}
