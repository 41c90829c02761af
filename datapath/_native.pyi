# The compiled module as csrc/build_native.py builds it. `lib` has the functions and constants of csrc/native.h and
# bpf/abi.h; functions take bytes or CData for pointers and return a result >= 0 or -errno.
from typing import Any, final

# A C value: attributes and items are those of its C type, which Python's types cannot express.
CData = Any
_Bytes = bytes | CData

@final
class CField:
    type: CType
    offset: int

@final
class CType:
    kind: str
    cname: str
    fields: list[tuple[str, CField]]
    relements: dict[str, int]

class FFI:
    NULL: CData
    def new(self, cdecl: str, init: object = ...) -> CData: ...
    def typeof(self, cdecl: str) -> CType: ...
    def sizeof(self, cdecl: str | CType | CData) -> int: ...
    def string(self, cdata: CData) -> bytes: ...
    def unpack(self, cdata: CData, length: int) -> list[int]: ...
    def from_buffer(self, cdecl: str, python_buffer: bytes | memoryview) -> CData: ...
    def buffer(self, cdata: CData, size: int = ...) -> memoryview: ...

class Lib:
    LS_ABI_VERSION: int
    LS_MAX_ENDPOINTS: int
    LS_MAX_NEIGHBOURS: int
    LS_MAX_DROP_KEYS: int
    LS_MAX_PARENTS: int
    LS_MAX_PEERS: int
    LS_MAX_NODES: int
    LS_MAX_DIRECT: int
    LS_MAX_LATENCIES: int
    LS_LATENCY_BUCKETS: int
    LS_LATENCY_SECOND: int
    LS_LATENCY_FAST: int
    LS_LATENCY_SLOW: int
    LS_LATENCY_TCP_RTT: int
    LS_MAX_DECISIONS: int
    LS_PARENT_SEGMENT: int
    LS_EP_FAST: int
    LS_EP_BRIDGED: int
    LS_EP_VEPA: int
    LS_EP_SWITCHED: int
    LS_EP_LIMITED: int
    LS_EP_ENGINE: int
    LS_EP_OVERLAY: int
    LS_PEER_DIRECT: int
    LS_PARENT_HOST: int
    LS_NEIGH_ROUTER: int
    LS_NEIGH_SILENT: int
    BPF_ANY: int
    BPF_NOEXIST: int
    BPF_EXIST: int
    BPF_F_NO_PREALLOC: int
    BPF_MAP_TYPE_HASH: int
    BPF_MAP_TYPE_ARRAY: int
    BPF_MAP_TYPE_PROG_ARRAY: int
    BPF_MAP_TYPE_PERCPU_HASH: int
    BPF_MAP_TYPE_PERCPU_ARRAY: int
    BPF_MAP_TYPE_LRU_HASH: int
    BPF_MAP_TYPE_LRU_PERCPU_HASH: int
    BPF_MAP_TYPE_LPM_TRIE: int
    BPF_PROG_TYPE_SOCKET_FILTER: int
    BPF_PROG_TYPE_SCHED_CLS: int
    BPF_PROG_TYPE_XDP: int
    BPF_XDP: int
    BPF_TCX_INGRESS: int
    BPF_TCX_EGRESS: int
    XDP_FLAGS_DRV_MODE: int
    XDP_FLAGS_SKB_MODE: int
    BPF_FUNC_redirect_peer: int

    def ls_bpf_obj_get(self, path: bytes) -> int: ...
    def ls_bpf_obj_pin(self, fd: int, path: bytes) -> int: ...
    def ls_bpf_is_bpffs(self, path: bytes) -> int: ...
    def ls_bpf_map_create(
        self, type: int, key_size: int, value_size: int, max_entries: int, flags: int, name: bytes
    ) -> int: ...
    def ls_bpf_map_lookup(self, fd: int, key: _Bytes, value: CData) -> int: ...
    def ls_bpf_map_update(self, fd: int, key: _Bytes, value: _Bytes, flags: int) -> int: ...
    def ls_bpf_map_delete(self, fd: int, key: _Bytes) -> int: ...
    def ls_bpf_map_next_key(self, fd: int, key: _Bytes, next_key: CData) -> int: ...
    def ls_bpf_map_lookup_batch(
        self, fd: int, in_batch: _Bytes, out_batch: CData, keys: CData, values: CData, count: CData
    ) -> int: ...
    def ls_bpf_map_info(self, fd: int, info: CData) -> int: ...
    def ls_bpf_prog_info(self, fd: int, info: CData) -> int: ...
    def ls_bpf_prog_load(
        self,
        type: int,
        insns: bytes,
        insn_count: int,
        license: bytes,
        name: bytes,
        log_level: int,
        log: CData,
        log_size: int,
    ) -> int: ...
    def ls_bpf_prog_test_run(
        self,
        fd: int,
        data_in: bytes,
        data_in_size: int,
        data_out: CData,
        data_out_size: CData,
        ctx: CData,
        ctx_size: int,
        repeat: int,
        retval: CData,
        duration_ns: CData,
    ) -> int: ...
    def ls_bpf_link_create(self, prog_fd: int, ifindex: int, attach_type: int, flags: int) -> int: ...
    def ls_bpf_link_update(self, link_fd: int, prog_fd: int) -> int: ...
    def ls_bpf_link_detach(self, link_fd: int) -> int: ...
    def ls_bpf_prog_query(self, ifindex: int, attach_type: int, prog_ids: CData, count: CData) -> int: ...
    def ls_bpf_prog_get_fd_by_id(self, id: int) -> int: ...
    def ls_bpf_link_info(self, fd: int, info: CData) -> int: ...
    def ls_netns_create(self, path: bytes, step: CData) -> int: ...
    def ls_netns_unmount(self, path: bytes) -> int: ...
    def ls_netns_prepare_directory(self, path: bytes, step: CData) -> int: ...
    def ls_netns_check(self, path: bytes) -> int: ...
    def ls_netns_open_socket(self, path: bytes, family: int, type: int, protocol: int, step: CData) -> int: ...
    def ls_netns_enter(self, path: bytes, step: CData) -> int: ...
    def ls_netns_unshare(self) -> int: ...
    def ls_probe_messages(self, a: int, b: int, size: int, count: int, is_answered: bool, ns: CData) -> int: ...
    def ls_counters_total(self, values: CData, count: int, cpus: int, totals: CData) -> None: ...
    def ls_histograms_size(self, values: CData, count: int) -> int: ...
    def ls_histograms_hold(self, into: CData, keys: CData, values: CData, count: int, room: CData) -> None: ...
    def ls_histogram_of(self, of: CData, owner: int, kind: int) -> CData: ...
    def ls_histograms_add(self, sum: CData, of: CData, kind: int, owners: CData, count: int) -> int: ...
    def ls_links_dump(self, sock: int, links: CData) -> int: ...
    LS_HISTOGRAM_BOUNDS: int
    LS_HISTOGRAM_BYTES: int
    def ls_histograms_text(
        self, out: CData, size: int, family: CData, of: CData, owners: CData, kinds: CData, at: CData
    ) -> int: ...
    def ls_histograms_protobuf(
        self, out: CData, size: int, family: CData, of: CData, owners: CData, kinds: CData, at: CData
    ) -> int: ...
    def ls_counters_text(
        self, out: CData, size: int, family: CData, values: CData, owners: CData, kinds: CData, at: CData
    ) -> int: ...
    def ls_counters_protobuf(
        self, out: CData, size: int, family: CData, values: CData, owners: CData, kinds: CData, at: CData
    ) -> int: ...
    def ls_links_free(self, links: CData) -> None: ...

ffi: FFI
lib: Lib
