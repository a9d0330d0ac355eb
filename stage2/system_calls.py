"""Names of system calls: what an app may use by default, and the groups a filter may name as `@SCOPE/NAME`.

The groups are those rkt had, by the same names. Calls newer than rkt are where they belong: with those they take the
place of (`clock_nanosleep_time64`) or are another way to do (`fsmount`)."""

from __future__ import annotations

from typing import Final


def _calls(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALLOWED: Final = _calls(
    """
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl arm_fadvise64_64 arm_sync_file_range bind
    breakpoint brk cacheflush capget capset chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 clone clone3 close
    close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchown fchown32 fchownat fcntl
    fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64
    fsync ftruncate ftruncate64 futex futex_time64 futimesat get_mempolicy get_robust_list get_thread_area getcpu
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32
    getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr inotify_add_watch
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_setup io_submit ioctl ioprio_get
    ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr
    link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise mbind membarrier
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
    mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open
    openat openat2 pause personality pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
    pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
    process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readdir readlink
    readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr rename renameat
    renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo s390_pci_mmio_read s390_pci_mmio_write
    s390_runtime_instr sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send
    sendfile sendfile64 sendmmsg sendmsg sendto set_mempolicy set_robust_list set_thread_area set_tid_address set_tls
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority
    setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt
    setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaction sigaltstack signal signalfd signalfd4
    sigpending sigprocmask sigreturn sigsuspend socket socketcall socketpair splice stat stat64 statfs statfs64 statx
    symlink symlinkat sync sync_file_range sync_file_range2 syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd timerfd_create
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit
    umask uname unlink unlinkat utime utimensat utimensat_time64 utimes vfork wait4 waitid waitpid write writev
    """
)
"""Allowed to every app, a few of them with certain arguments only (`stage2.seccomp`)."""

ALLOWED_WITH: Final = {
    name: _calls(calls)
    for name, calls in {
        "DAC_READ_SEARCH": "open_by_handle_at",
        "SYS_ADMIN": """bpf fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
            open_tree perf_event_open pivot_root quotactl setdomainname sethostname setns umount umount2 unshare""",
        "SYS_BOOT": "reboot",
        "SYS_CHROOT": "chroot",
        "SYS_MODULE": "delete_module finit_module init_module query_module",
        "SYS_PACCT": "acct",
        "SYS_PTRACE": "kcmp process_madvise",
        "SYS_RAWIO": "ioperm iopl",
        "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
        "SYS_TTY_CONFIG": "vhangup",
        "SYSLOG": "syslog",
    }.items()
}
"""Allowed to an app that has the capability, and known but not permitted (EPERM) to any other."""

NOT_PERMITTED: Final = _calls(
    """
    add_key bdflush io_pgetevents io_pgetevents_time64 kexec_file_load kexec_load keyctl migrate_pages move_pages
    nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname pciconfig_iobase pciconfig_read pciconfig_write
    request_key sgetmask ssetmask swapcontext swapoff swapon sysfs uselib userfaultfd ustat vm86 vm86old vmsplice
    """
)
"""Known but not permitted. Any other call is answered as one the kernel lacks (ENOSYS), so that programs fall back."""

_DOCKER_ALLOWED: Final = (*ALLOWED, "chroot", "syslog", "vmsplice")
_DOCKER_DENIED: Final = _calls(
    """
    acct add_key adjtimex bpf clock_adjtime clock_adjtime64 clock_settime clock_settime64 create_module delete_module
    fanotify_init finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_uring_enter
    io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind mount
    mount_setattr move_mount move_pages name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open
    pivot_root process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key
    set_mempolicy set_mempolicy_home_node setns settimeofday stime swapoff swapon sysfs _sysctl umount umount2 unshare
    uselib userfaultfd ustat vm86 vm86old
    """
)
_CLOCK: Final = _calls("adjtimex clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime")
_RAW_IO: Final = _calls(
    """
    ioperm iopl pciconfig_iobase pciconfig_read pciconfig_write s390_pci_mmio_read s390_pci_mmio_write
    """
)
_PRIVILEGED: Final = _calls(
    """
    _sysctl acct bpf capset chown chown32 chroot delete_module fanotify_init fanotify_mark fchown fchown32 fchownat
    finit_module init_module kexec_file_load kexec_load lchown lchown32 nfsservctl open_by_handle_at pivot_root
    quotactl quotactl_fd reboot setdomainname setfsuid setfsuid32 setgroups setgroups32 sethostname setresuid
    setresuid32 setreuid setreuid32 setuid setuid32 swapoff swapon vhangup
    """
)

ALL: Final = "@appc.io/all"
EMPTY: Final = "@appc.io/empty"
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    EMPTY: (),
    "@docker/default-whitelist": _DOCKER_ALLOWED,
    "@docker/default-blacklist": _DOCKER_DENIED,
    "@rkt/default-whitelist": _DOCKER_ALLOWED,
    "@rkt/default-blacklist": _DOCKER_DENIED,
    "@systemd/clock": _CLOCK,
    "@systemd/default-whitelist": _calls(
        """
        arch_prctl brk cacheflush clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
        clock_nanosleep_time64 execve exit exit_group futex futex_time64 futex_waitv get_robust_list get_thread_area
        getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid
        getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getsid gettid gettimeofday getuid getuid32
        membarrier mmap mmap2 mprotect munmap nanosleep pause prlimit64 restart_syscall riscv_flush_icache rseq
        rt_sigreturn sched_getaffinity sched_yield set_robust_list set_thread_area set_tid_address set_tls sigreturn
        time ugetrlimit
        """
    ),
    "@systemd/mount": _calls(
        """
        chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root umount umount2
        """
    ),
    "@systemd/network-io": _calls(
        """
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
        recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socket socketcall socketpair
        """
    ),
    "@systemd/obsolete": _calls(
        """
        _sysctl afs_syscall bdflush break create_module ftime get_kernel_syms getpmsg gtty idle lock mpx prof profil
        putpmsg query_module security sgetmask ssetmask stime stty sysfs tuxcall ulimit uselib ustat vserver
        """
    ),
    "@systemd/privileged": (*_PRIVILEGED, *_CLOCK, *_RAW_IO),
    "@systemd/process": _calls(
        """
        capget clone clone3 execveat fork getrusage kill pidfd_open pidfd_send_signal prctl rt_sigqueueinfo
        rt_tgsigqueueinfo setns swapcontext tgkill times tkill unshare vfork wait4 waitid waitpid
        """
    ),
    "@systemd/raw-io": _RAW_IO,
}
"""Every group but `ALL`, which no list can be."""
