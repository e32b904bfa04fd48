//! Makes the machine from its configuration, runs it, and ends it.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use kvm_bindings::{
    KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, KVM_X86_DEFAULT_VM, KVM_X86_SNP_VM, kvm_enable_cap,
    kvm_pit_config,
};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, BASE_CMDLINE};
use crate::bus::Bus;
use crate::config::{Boot, Config, Work};
use crate::exit::Exit;
use crate::firmware::{self, Confidential, Firmware};
use crate::layout;
use crate::memory::{self, Ram};
use crate::phase::phase;
use crate::serial::Serial;
use crate::snp;
use crate::vcpu::{self, Control, Maker, Vcpu};
use crate::virtio::block::{self, Block};
use crate::virtio::fs::{self, Fs};
use crate::virtio::mmio::{QUEUE_NOTIFY, Transport};
use crate::virtio::net::{self, Net};
use crate::virtio::vsock::{self, NOTIFIED_QUEUES, Vsock, Wakes};
use crate::virtio::{Command, Description, Inbox, Interrupt, Outbox, command_channel};

/// The KVM API that has been stable since Linux 2.6.22.
pub const KVM_API_VERSION: i32 = 12;

/// Why a VM could not be made or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor is not KVM, or not one that we know.
    #[error("the KVM device speaks API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// A step of the machine's set-up failed.
    #[error("KVM can't {what}")]
    Kvm {
        /// The step, as a verb phrase.
        what: &'static str,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
    /// The guest's RAM.
    #[error("can't set up guest memory")]
    Memory(#[from] memory::Error),
    /// Kernel, initrd or command line.
    #[error("can't load the guest")]
    Boot(#[from] boot::Error),
    /// A guest with a firmware.
    #[error("can't start the guest's firmware")]
    Firmware(#[from] firmware::Error),
    /// What a guest with a firmware can't have.
    #[error("a guest that starts in a firmware can't share directories with the host")]
    Volumes,
    /// A virtual processor.
    #[error("can't set up the guest's processors")]
    Vcpu(#[from] vcpu::Error),
    /// A disk.
    #[error("can't set up a disk")]
    Disk(#[from] block::Error),
    /// A volume.
    #[error("can't set up a volume")]
    Volume(#[from] fs::Error),
    /// The socket device.
    #[error("can't set up the vsock device")]
    Vsock(#[from] vsock::Error),
    /// A device's registers.
    #[error("can't set up a virtqueue")]
    Queue(#[from] virtio_queue::Error),
    /// More disks, network interfaces and volumes than interrupt lines.
    #[error(
        "{count} disks, network interfaces and volumes are more than the {max} that there are interrupt lines for"
    )]
    TooManyDevices {
        /// How many.
        count: usize,
        /// How many there can be.
        max: usize,
    },
    /// The host is short of something.
    #[error("the host refuses {what}")]
    Host {
        /// What it refuses.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// A device that waits for its thread.
#[derive(Debug)]
struct Pending<D, W> {
    device: D,
    inbox: Inbox,
    wakes: W,
    interrupt: Interrupt,
}

/// A machine with everything in place, whose processors do not run yet.
///
/// From here on nothing is opened and no path is used.
#[derive(Debug)]
pub struct Vm {
    // Fields are dropped in this order: guest memory must outlive the VM that maps it.
    vcpus: Vec<Vcpu>,
    kvm_vm: Arc<VmFd>,
    confidential: Option<Arc<Confidential>>,
    bus: Arc<Bus>,
    control: Arc<Control>,
    outboxes: Vec<Outbox>,
    disks: Vec<Pending<Block, EventFd>>,
    nics: Vec<Pending<Net, net::Wakes>>,
    volumes: Vec<Pending<Fs, EventFd>>,
    vsock: Pending<Vsock, Wakes>,
    memory: Arc<Ram>,
}

impl Vm {
    /// Makes the VM: memory, kernel, devices, vCPUs. No thread runs yet.
    pub fn new(config: Config) -> Result<Vm, Error> {
        let Config {
            kvm,
            boot,
            memory_mib,
            vcpus,
            disks,
            mut nics,
            volumes,
            vsock,
            console,
        } = config;
        let devices = disks.len() + nics.len() + volumes.len();
        let places = match &boot {
            Boot::Kernel { .. } => layout::MAX_VIRTIO_DEVICES,
            Boot::Firmware(_) => layout::FIRMWARE_VIRTIO_DEVICES,
        };
        // One is the socket device's.
        if devices >= places {
            return Err(Error::TooManyDevices {
                count: devices,
                max: places - 1,
            });
        }
        let kvm = kvm_from_file(kvm)?;
        let started = match boot {
            Boot::Kernel {
                kernel,
                initrd,
                cmdline,
            } => {
                let cmdline = full_cmdline(&cmdline, devices + 1);
                start_kernel(&kvm, &kernel, &initrd, &cmdline, memory_mib, vcpus)?
            }
            Boot::Firmware(_) if !volumes.is_empty() => return Err(Error::Volumes),
            Boot::Firmware(firmware) => {
                // The kernel would have to be told which pages are shared.
                nics.iter_mut().for_each(|nic| nic.vhost = None);
                start_firmware(&kvm, &firmware, memory_mib, vcpus)?
            }
        };
        let Started {
            kvm_vm,
            memory,
            vcpus: vcpus_made,
            confidential,
        } = started;
        let control = Arc::new(Control::new(vcpus).map_err(host("a signal handler"))?);

        let mut builder = DeviceBuilder {
            kvm_vm: &kvm_vm,
            memory: &memory,
            confidential: confidential.as_deref(),
            transports: vec![],
            outboxes: vec![],
        };
        let (disks, nics, volumes, vsock) = phase("vmm.devices", || -> Result<_, Error> {
            let disks = disks
                .into_iter()
                .map(|disk| builder.disk(Block::new(disk)?))
                .collect::<Result<_, Error>>()?;
            let nics = nics
                .into_iter()
                .map(|nic| builder.nic(Net::new(nic)))
                .collect::<Result<_, Error>>()?;
            let volumes = volumes
                .into_iter()
                .map(|volume| builder.volume(Fs::new(volume)?))
                .collect::<Result<_, Error>>()?;
            let ended = control
                .ended()
                .try_clone_to_owned()
                .map_err(host("a descriptor"))?;
            let vsock = builder.vsock(Vsock::new(vsock)?, ended)?;
            Ok((disks, nics, volumes, vsock))
        })?;
        let DeviceBuilder {
            transports, outboxes, ..
        } = builder;
        let bus = Arc::new(Bus::new(serial(&kvm_vm, console)?, transports));
        Ok(Vm {
            vcpus: vcpus_made,
            kvm_vm,
            confidential,
            bus,
            control,
            outboxes,
            disks,
            nics,
            volumes,
            vsock,
            memory,
        })
    }

    /// Starts the device and vCPU threads.
    ///
    /// Installs a handler for the last real-time signal (`SIGRTMAX`), with which vCPU threads are interrupted.
    pub fn start(self) -> Result<Running, Error> {
        let Vm {
            vcpus,
            kvm_vm,
            confidential,
            bus,
            control,
            outboxes,
            disks,
            nics,
            volumes,
            vsock,
            memory,
        } = self;
        let threads = Vec::new();
        // From here on dropping it ends and joins every thread that was started.
        let mut running = Running {
            control,
            bus,
            outboxes,
            threads,
            confidential,
            _kvm_vm: kvm_vm,
            _memory: Arc::clone(&memory),
        };
        for (
            index,
            Pending {
                device,
                inbox,
                wakes,
                interrupt,
            },
        ) in disks.into_iter().enumerate()
        {
            let thread = device.spawn(
                format!("block{index}"),
                inbox,
                wakes,
                interrupt,
                Arc::clone(&memory),
            );
            running.threads.push(thread.map_err(host("a thread for a disk"))?);
        }
        for (index, nic) in nics.into_iter().enumerate() {
            let thread = nic.device.spawn(
                format!("net{index}"),
                nic.inbox,
                nic.wakes,
                nic.interrupt,
                Arc::clone(&memory),
            );
            running
                .threads
                .push(thread.map_err(host("a thread for a network interface"))?);
        }
        for (index, volume) in volumes.into_iter().enumerate() {
            let (work, thread) = volume.device.work(
                format!("volume{index}"),
                volume.inbox,
                volume.wakes,
                volume.interrupt,
                Arc::clone(&memory),
            );
            let work: Work = Box::new(work);
            thread
                .work
                .send(work)
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
                .map_err(host("a thread for a volume"))?;
            running.threads.push(thread.handle);
        }
        let Pending {
            device,
            inbox,
            wakes,
            interrupt,
        } = vsock;
        let thread = device.spawn(inbox, wakes, interrupt, memory);
        running.threads.push(thread.map_err(host("a thread for vsock"))?);
        for vcpu in vcpus {
            let thread = vcpu.spawn(Arc::clone(&running.control), Arc::clone(&running.bus))?;
            running.threads.push(thread);
        }
        Ok(running)
    }
}

/// A VM whose threads run.
///
/// When the VM has ended, what the guest had sent over vsock is still delivered to the endpoints, which then see the end of their
/// streams. Dropping `Running` stops the VM and cuts that short.
#[derive(Debug)]
pub struct Running {
    control: Arc<Control>,
    bus: Arc<Bus>,
    outboxes: Vec<Outbox>,
    threads: Vec<JoinHandle<()>>,
    confidential: Option<Arc<Confidential>>,
    // Dropped last, in this order.
    _kvm_vm: Arc<VmFd>,
    _memory: Arc<Ram>,
}

impl Running {
    /// Waits until the VM has ended and says why.
    pub fn wait(&self) -> Exit {
        self.control.wait()
    }

    /// Why the VM ended, or `None` while it runs.
    pub fn try_exit(&self) -> Option<Exit> {
        self.control.exit()
    }

    /// Becomes readable when the VM has ended, and stays so. For polling, not for reading.
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.control.ended()
    }

    /// Stops all vCPUs from running guest code; returns when they do not run any more. Devices finish what they have.
    pub fn pause(&self) {
        self.control.pause();
    }

    /// Lets the vCPUs go on after [`pause`](Running::pause).
    pub fn resume(&self) {
        self.control.resume();
    }

    /// Ends the VM. [`wait`](Running::wait) returns [`Exit::Stopped`], unless it had ended by itself before.
    pub fn stop(&self) {
        self.control.end(Exit::Stopped);
    }

    /// Page states of a guest that started in a firmware, and whether they are a model.
    pub fn page_states(&self) -> Option<(snp::Statistics, bool)> {
        let guest = self.confidential.as_ref()?;
        Some((guest.pages.statistics(), guest.modelled))
    }

    /// The last 64 KiB that the guest wrote to its serial port: the kernel's log.
    pub fn console_tail(&self) -> String {
        self.bus.console_tail()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.end(Exit::Stopped);
        self.outboxes.iter().for_each(|outbox| outbox.send(Command::Stop));
        for thread in self.threads.drain(..) {
            // A panic in a thread has been reported already, and ended the process where panics abort.
            let _ = thread.join();
        }
    }
}

/// Takes the caller's descriptor as KVM's, if it is.
pub fn kvm_from_file(file: File) -> Result<Kvm, Error> {
    // SAFETY: the descriptor is open and its ownership moves to `Kvm`. If it is not KVM, its first ioctl says so.
    let kvm = unsafe { Kvm::from_raw_fd(file.into_raw_fd()) };
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        other => Err(Error::ApiVersion(other)),
    }
}

/// A machine whose vCPUs can run.
struct Started {
    kvm_vm: Arc<VmFd>,
    memory: Arc<Ram>,
    vcpus: Vec<Vcpu>,
    confidential: Option<Arc<Confidential>>,
}

/// A machine that starts in its kernel.
fn start_kernel(
    kvm: &Kvm,
    kernel: &File,
    initrd: &File,
    cmdline: &str,
    memory_mib: u64,
    vcpus: u8,
) -> Result<Started, Error> {
    let (kvm_vm, memory) = phase("vmm.memory", || -> Result<_, Error> {
        let kvm_vm = create_vm(kvm, KVM_X86_DEFAULT_VM)?;
        let memory = Arc::new(memory::allocate(memory_mib)?);
        memory::register(&kvm_vm, &memory)?;
        Ok((kvm_vm, memory))
    })?;
    let entry = boot::load(&memory, kernel, initrd, cmdline, vcpus)?;
    let vcpus = phase("vmm.vcpus", || vcpu::create(kvm, &kvm_vm, &memory, vcpus, entry))?;
    Ok(Started {
        kvm_vm: Arc::new(kvm_vm),
        memory,
        vcpus,
        confidential: None,
    })
}

/// A machine that starts in a firmware, under SNP if there is one.
fn start_firmware(kvm: &Kvm, firmware: &Firmware, memory_mib: u64, vcpus: u8) -> Result<Started, Error> {
    if firmware.vcpus.len() != usize::from(vcpus) {
        let states = firmware.vcpus.len();
        return Err(firmware::Error::States { states, vcpus }.into());
    }
    let kind = match firmware.snp {
        Some(_) => KVM_X86_SNP_VM,
        None => KVM_X86_DEFAULT_VM,
    };
    let (kvm_vm, memory) = phase("vmm.memory", || -> Result<_, Error> {
        let kvm_vm = create_vm(kvm, kind)?;
        let window = firmware.window()?;
        let memory = Arc::new(memory::allocate_beside(memory_mib, Some(window))?);
        firmware.stage(&memory)?;
        Ok((Arc::new(kvm_vm), memory))
    })?;
    let (fds, confidential) = phase("vmm.launch", || -> Result<_, Error> {
        let maker = Maker::new(kvm, &kvm_vm, vcpus)?;
        match &firmware.snp {
            Some(snp) => Ok(firmware.launch(snp, &kvm_vm, &maker, &memory)?),
            None => {
                memory::register(&kvm_vm, &memory)?;
                Ok(firmware.place(&maker, &memory)?)
            }
        }
    })?;
    let confidential = Arc::new(confidential);
    let vcpus = (0..vcpus)
        .zip(fds)
        .map(|(index, fd)| Vcpu::new(index, fd, Some(Arc::clone(&confidential))));
    Ok(Started {
        vcpus: vcpus.collect(),
        kvm_vm,
        memory,
        confidential: Some(confidential),
    })
}

/// An empty machine of one of KVM's types, with KVM's interrupt controllers and timer.
fn create_vm(kvm: &Kvm, kind: u32) -> Result<VmFd, Error> {
    let failed = |what| move |source| Error::Kvm { what, source };
    let vm = kvm
        .create_vm_with_type(kind.into())
        .map_err(failed("create a VM"))?;
    disable_pmu(&vm);
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(failed("place the TSS"))?;
    vm.create_irq_chip()
        .map_err(failed("emulate interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(failed("emulate the timer"))?;
    Ok(vm)
}

/// Takes the performance counters away from the guest, where KVM can: CPUID hides them, this makes it so.
fn disable_pmu(vm: &VmFd) {
    if vm.check_extension_raw(kvm_bindings::KVM_CAP_PMU_CAPABILITY.into()) & KVM_PMU_CAP_DISABLE as i32 == 0 {
        return;
    }
    let mut cap = kvm_enable_cap {
        cap: kvm_bindings::KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    cap.args[0] = KVM_PMU_CAP_DISABLE.into();
    if let Err(error) = vm.enable_cap(&cap) {
        tracing::warn!(%error, "KVM does not disable its performance counters for the guest");
    }
}

/// The base command line, the devices' places, and what the caller adds.
fn full_cmdline(extra: &str, devices: usize) -> String {
    let mut line = String::from(BASE_CMDLINE);
    for (base, gsi) in places().take(devices) {
        line += &format!(" virtio_mmio.device=4K@{base:#x}:{gsi}");
    }
    if !extra.is_empty() {
        line += " ";
        line += extra;
    }
    line
}

/// The command line of every guest that starts in a firmware, which measures it: the same for all. It names all places for devices, the
/// empty ones too, whose DeviceID of 0 drivers leave alone. Of the base command line it lacks `acpi=off`, since Linux ignores MP tables
/// under SNP: the firmware makes the only ACPI table, which names processors and interrupt controllers and holds no code.
/// `swiotlb=4096,force`: devices see bounce buffers only. Under SNP Linux does so anyway; without SNP this makes it the same. They are
/// 4096 of 2 KiB in the beginning, in the place of 64 MiB that would be cleared, and under SNP shared page by page, at each boot: the
/// kernel makes more when they are used up (`CONFIG_SWIOTLB_DYNAMIC`).
pub fn confidential_cmdline() -> String {
    let base = BASE_CMDLINE.split(' ').filter(|word| *word != "acpi=off");
    // Linux maps a PC's lines without being told of them; any table that would tell it of more came from the host.
    let places = places()
        .take(layout::FIRMWARE_VIRTIO_DEVICES)
        .map(|(base, gsi)| format!("virtio_mmio.device=4K@{base:#x}:{gsi}"));
    let own = [String::from("swiotlb=4096,force")];
    let words: Vec<_> = base.map(str::to_owned).chain(own).chain(places).collect();
    words.join(" ")
}

/// Window and interrupt line of each virtio-mmio device.
fn places() -> impl Iterator<Item = (u64, u32)> {
    let gsis = layout::FIRST_VIRTIO_GSI..=layout::LAST_GSI;
    gsis.enumerate()
        .map(|(index, gsi)| (layout::VIRTIO_MMIO + index as u64 * layout::VIRTIO_MMIO_SIZE, gsi))
}

/// The serial port with its interrupt line.
fn serial(vm: &VmFd, console: Option<File>) -> Result<Serial, Error> {
    let line = eventfd(libc::EFD_NONBLOCK)?;
    register_line(vm, &line, layout::SERIAL_GSI)?;
    Ok(Serial::new(line, console))
}

fn register_line(vm: &VmFd, line: &EventFd, gsi: u32) -> Result<(), Error> {
    vm.register_irqfd(line, gsi).map_err(|source| Error::Kvm {
        what: "connect an interrupt line",
        source,
    })
}

fn eventfd(flags: i32) -> Result<EventFd, Error> {
    EventFd::new(flags | libc::EFD_CLOEXEC).map_err(host("an eventfd"))
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Gives devices their places, lines and notifications.
struct DeviceBuilder<'a> {
    kvm_vm: &'a VmFd,
    memory: &'a Arc<Ram>,
    confidential: Option<&'a Confidential>,
    transports: Vec<Transport>,
    outboxes: Vec<Outbox>,
}

impl DeviceBuilder<'_> {
    /// One eventfd wakes the thread for commands and notifications; the thread blocks in reading it.
    fn disk(&mut self, device: Block) -> Result<Pending<Block, EventFd>, Error> {
        let wake = eventfd(0)?;
        let (inbox, interrupt) = self.attach(device.description(), &[&wake], &wake)?;
        Ok(Pending {
            device,
            inbox,
            wakes: wake,
            interrupt,
        })
    }

    /// As for a disk: one eventfd for all queues and commands.
    fn volume(&mut self, device: Fs) -> Result<Pending<Fs, EventFd>, Error> {
        let wake = eventfd(0)?;
        let notifications: [&EventFd; fs::QUEUES] = [&wake; fs::QUEUES];
        let (inbox, interrupt) = self.attach(device.description(), &notifications, &wake)?;
        Ok(Pending {
            device,
            inbox,
            wakes: wake,
            interrupt,
        })
    }

    fn nic(&mut self, device: Net) -> Result<Pending<Net, net::Wakes>, Error> {
        let [command, receive, transmit] = [
            eventfd(libc::EFD_NONBLOCK)?,
            eventfd(libc::EFD_NONBLOCK)?,
            eventfd(libc::EFD_NONBLOCK)?,
        ];
        let notifications: [&EventFd; net::NOTIFIED_QUEUES] = [&receive, &transmit];
        let (inbox, interrupt) = self.attach(device.description(), &notifications, &command)?;
        let wakes = net::Wakes {
            command,
            receive,
            transmit,
        };
        Ok(Pending {
            device,
            inbox,
            wakes,
            interrupt,
        })
    }

    fn vsock(&mut self, device: Vsock, ended: std::os::fd::OwnedFd) -> Result<Pending<Vsock, Wakes>, Error> {
        let [command, to_guest, from_guest] = [
            eventfd(libc::EFD_NONBLOCK)?,
            eventfd(libc::EFD_NONBLOCK)?,
            eventfd(libc::EFD_NONBLOCK)?,
        ];
        let notifications: [&EventFd; NOTIFIED_QUEUES] = [&to_guest, &from_guest];
        let (inbox, interrupt) = self.attach(device.description(), &notifications, &command)?;
        let wakes = Wakes {
            command,
            to_guest,
            from_guest,
            ended,
        };
        Ok(Pending {
            device,
            inbox,
            wakes,
            interrupt,
        })
    }

    /// Puts a device at the next place. Queue `i` notifies `notifications[i]`.
    fn attach(
        &mut self,
        description: Description,
        notifications: &[&EventFd],
        command: &EventFd,
    ) -> Result<(Inbox, Interrupt), Error> {
        // The number of devices was checked against the places there are.
        let Some((base, gsi)) = places().nth(self.transports.len()) else {
            return Err(Error::TooManyDevices {
                count: self.transports.len(),
                max: layout::MAX_VIRTIO_DEVICES,
            });
        };
        let line = eventfd(libc::EFD_NONBLOCK)?;
        register_line(self.kvm_vm, &line, gsi)?;
        for (queue, event) in (0u32..).zip(notifications) {
            let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
            self.kvm_vm
                .register_ioevent(event, &address, queue)
                .map_err(|source| Error::Kvm {
                    what: "connect a queue's notification",
                    source,
                })?;
        }
        let (outbox, inbox) = command_channel(command.try_clone().map_err(host("a descriptor"))?);
        let interrupt = Interrupt::new(line);
        let transport = Transport::new(
            description,
            interrupt.clone(),
            outbox.clone(),
            Arc::clone(self.memory),
        )?;
        let transport = match self.confidential {
            Some(guest) => {
                let model = guest.modelled.then(|| Arc::clone(&guest.pages));
                transport.for_confidential_guest(model)
            }
            None => transport,
        };
        self.transports.push(transport);
        self.outboxes.push(outbox);
        Ok((inbox, interrupt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_every_device() {
        let line = full_cmdline("cwrun.debug", 3);
        assert!(line.starts_with(BASE_CMDLINE));
        assert!(line.ends_with(
            " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 \
             virtio_mmio.device=4K@0xd0002000:7 cwrun.debug"
        ));
        assert!(!full_cmdline("", 1).ends_with(' '));
    }

    #[test]
    fn the_command_line_of_a_firmwares_guest_is_constant_and_names_every_place() {
        let line = confidential_cmdline();
        assert_eq!(
            line.matches("virtio_mmio.device=").count(),
            layout::FIRMWARE_VIRTIO_DEVICES
        );
        assert!(line.ends_with("virtio_mmio.device=4K@0xd000a000:15"));
        assert!(!line.contains("acpi=off") && line.contains(" swiotlb=4096,force "));
        assert!(line.len() < layout::CMDLINE_SIZE);
    }

    #[test]
    fn a_file_that_is_not_kvm_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(kvm_from_file(file), Err(Error::ApiVersion(_))));
    }

    #[test]
    fn every_place_has_a_line_of_its_own() {
        assert_eq!(places().count(), layout::MAX_VIRTIO_DEVICES);
        assert_eq!(places().last(), Some((0xd001_2000, 23)));
    }
}
