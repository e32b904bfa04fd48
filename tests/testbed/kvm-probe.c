// Says whether this machine's /dev/kvm can really run a guest, which its mere presence does not show: some machines have
// one that opens and makes VMs but emulates an ordinary guest instruction by instruction, or never lets it run.
//
// The guest is a loop of 20 million rounds in real mode, then a write to port 0x10. A processor with hardware virtualization does
// that in some 10 ms; the deadline is 3 s. Exit status: 0 it can, 1 it can not (the reason is on stdout).
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DEADLINE_SECONDS = 3, CODE_GPA = 0x1000, DONE_PORT = 0x10, MEMORY = 0x2000 };

static const unsigned char GUEST[] = {
    0x66, 0xb9, 0x00, 0x2d, 0x31, 0x01, // mov ecx, 20000000
    0x66, 0x49,                         // dec ecx
    0x75, 0xfc,                         // jnz to the dec
    0xe6, DONE_PORT,                    // out 0x10, al
    0xf4,                               // hlt
};

static void cannot(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static void too_slow(int signal) {
    static const char text[] = "a guest of 20 million loop rounds did not finish in 3 s: no hardware virtualization behind it\n";
    (void)signal;
    (void)!write(STDOUT_FILENO, text, sizeof text - 1);
    _exit(1);
}

int main(void) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) cannot("cannot open /dev/kvm");
    signal(SIGALRM, too_slow);
    alarm(DEADLINE_SECONDS);

    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) cannot("cannot create a VM");
    unsigned char *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) cannot("cannot allocate guest memory");
    memcpy(memory + CODE_GPA, GUEST, sizeof GUEST);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (unsigned long)memory};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) cannot("cannot give the VM memory");

    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    if (vcpu < 0) cannot("cannot create a vCPU");
    int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (run_size < (int)sizeof(struct kvm_run)) cannot("cannot size the vCPU's state");
    struct kvm_run *run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) cannot("cannot map the vCPU's state");

    struct kvm_sregs sregs;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0) cannot("cannot read the vCPU's registers");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    struct kvm_regs regs = {.rip = CODE_GPA, .rflags = 2};
    if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0) cannot("cannot set the vCPU's registers");

    if (ioctl(vcpu, KVM_RUN, 0) < 0) cannot("cannot run the vCPU");
    if (run->exit_reason != KVM_EXIT_IO || run->io.port != DONE_PORT) {
        printf("the guest stopped with KVM exit %u instead of its last instruction\n", run->exit_reason);
        return 1;
    }
    return 0;
}
