/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bpf(2), one function per command. The attribute union is zeroed whole: the kernel refuses commands with
 * non-zero bytes that it does not know.
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "native.h"

/* The verifier gives up with EAGAIN when a signal arrives. */
#define LOAD_ATTEMPTS 5

static int bpf(enum bpf_cmd cmd, union bpf_attr *attr)
{
	long rc = syscall(__NR_bpf, cmd, attr, sizeof(*attr));

	return rc < 0 ? -errno : (int)rc;
}

static __u64 pointer(const void *p)
{
	return (__u64)(unsigned long)p;
}

int ls_bpf_obj_get(const char *path)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.pathname = pointer(path);
	return bpf(BPF_OBJ_GET, &attr);
}

int ls_bpf_obj_pin(int fd, const char *path)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.pathname = pointer(path);
	attr.bpf_fd = fd;
	return bpf(BPF_OBJ_PIN, &attr);
}

int ls_bpf_is_bpffs(const char *path)
{
	struct statfs fs;

	if (statfs(path, &fs) < 0)
		return -errno;
	return fs.f_type == BPF_FS_MAGIC;
}

int ls_bpf_map_create(__u32 type, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags, const char *name)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_type = type;
	attr.key_size = key_size;
	attr.value_size = value_size;
	attr.max_entries = max_entries;
	attr.map_flags = flags;
	strncpy(attr.map_name, name, sizeof(attr.map_name) - 1);
	return bpf(BPF_MAP_CREATE, &attr);
}

static int map_elem(enum bpf_cmd cmd, int fd, const void *key, const void *value, __u64 flags)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.map_fd = fd;
	attr.key = pointer(key);
	attr.value = pointer(value);
	attr.flags = flags;
	return bpf(cmd, &attr);
}

int ls_bpf_map_lookup(int fd, const void *key, void *value)
{
	return map_elem(BPF_MAP_LOOKUP_ELEM, fd, key, value, 0);
}

int ls_bpf_map_update(int fd, const void *key, const void *value, __u64 flags)
{
	return map_elem(BPF_MAP_UPDATE_ELEM, fd, key, value, flags);
}

int ls_bpf_map_delete(int fd, const void *key)
{
	return map_elem(BPF_MAP_DELETE_ELEM, fd, key, NULL, 0);
}

int ls_bpf_map_next_key(int fd, const void *key, void *next_key)
{
	return map_elem(BPF_MAP_GET_NEXT_KEY, fd, key, next_key, 0);
}

int ls_bpf_map_lookup_batch(int fd, const void *in_batch, void *out_batch, void *keys, void *values, __u32 *count)
{
	union bpf_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	attr.batch.map_fd = fd;
	attr.batch.in_batch = pointer(in_batch);
	attr.batch.out_batch = pointer(out_batch);
	attr.batch.keys = pointer(keys);
	attr.batch.values = pointer(values);
	attr.batch.count = *count;
	rc = bpf(BPF_MAP_LOOKUP_BATCH, &attr);
	*count = attr.batch.count;
	return rc;
}

static int object_info(int fd, void *info, __u32 size)
{
	union bpf_attr attr;

	memset(info, 0, size);
	memset(&attr, 0, sizeof(attr));
	attr.info.bpf_fd = fd;
	attr.info.info = pointer(info);
	attr.info.info_len = size;
	return bpf(BPF_OBJ_GET_INFO_BY_FD, &attr);
}

int ls_bpf_map_info(int fd, struct bpf_map_info *info)
{
	return object_info(fd, info, sizeof(*info));
}

int ls_bpf_prog_info(int fd, struct bpf_prog_info *info)
{
	return object_info(fd, info, sizeof(*info));
}

int ls_bpf_prog_load(__u32 type, const void *insns, __u32 insn_count, const char *license, const char *name,
		     __u32 log_level, char *log, __u32 log_size)
{
	union bpf_attr attr;
	int attempt, rc = -EAGAIN;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = type;
	attr.insns = pointer(insns);
	attr.insn_cnt = insn_count;
	attr.license = pointer(license);
	strncpy(attr.prog_name, name, sizeof(attr.prog_name) - 1);
	if (log_level) {
		attr.log_level = log_level;
		attr.log_buf = pointer(log);
		attr.log_size = log_size;
	}
	for (attempt = 0; attempt < LOAD_ATTEMPTS && rc == -EAGAIN; attempt++)
		rc = bpf(BPF_PROG_LOAD, &attr);
	return rc;
}

int ls_bpf_prog_test_run(int fd, const void *data_in, __u32 data_in_size, void *data_out, __u32 *data_out_size,
			 void *ctx, __u32 ctx_size, __u32 repeat, __u32 *retval, __u32 *duration_ns)
{
	union bpf_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	attr.test.prog_fd = fd;
	attr.test.data_in = pointer(data_in);
	attr.test.data_size_in = data_in_size;
	attr.test.data_out = pointer(data_out);
	attr.test.data_size_out = *data_out_size;
	attr.test.repeat = repeat;
	if (ctx) {
		attr.test.ctx_in = pointer(ctx);
		attr.test.ctx_size_in = ctx_size;
		attr.test.ctx_out = pointer(ctx);
		attr.test.ctx_size_out = ctx_size;
	}
	rc = bpf(BPF_PROG_TEST_RUN, &attr);
	*data_out_size = attr.test.data_size_out;
	*retval = attr.test.retval;
	*duration_ns = attr.test.duration;
	return rc;
}

int ls_bpf_link_create(int prog_fd, __u32 ifindex, __u32 attach_type, __u32 flags)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.link_create.prog_fd = prog_fd;
	attr.link_create.target_ifindex = ifindex;
	attr.link_create.attach_type = attach_type;
	attr.link_create.flags = flags;
	return bpf(BPF_LINK_CREATE, &attr);
}

int ls_bpf_link_update(int link_fd, int prog_fd)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.link_update.link_fd = link_fd;
	attr.link_update.new_prog_fd = prog_fd;
	return bpf(BPF_LINK_UPDATE, &attr);
}

int ls_bpf_link_detach(int link_fd)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.link_detach.link_fd = link_fd;
	return bpf(BPF_LINK_DETACH, &attr);
}

int ls_bpf_prog_query(__u32 ifindex, __u32 attach_type, __u32 *prog_ids, __u32 *count)
{
	union bpf_attr attr;
	int rc;

	memset(&attr, 0, sizeof(attr));
	attr.query.target_fd = ifindex; /* target_ifindex in headers since 6.6 */
	attr.query.attach_type = attach_type;
	attr.query.prog_ids = pointer(prog_ids);
	attr.query.prog_cnt = *count;
	rc = bpf(BPF_PROG_QUERY, &attr);
	if (rc >= 0)
		*count = attr.query.prog_cnt;
	return rc;
}

int ls_bpf_prog_get_fd_by_id(__u32 id)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_id = id;
	return bpf(BPF_PROG_GET_FD_BY_ID, &attr);
}

int ls_bpf_link_info(int fd, struct ls_link_info *info)
{
	/* The head of struct bpf_link_info with the tcx member of its union, which headers before 6.6 lack. The
	 * XDP and netkit members begin in the same way. */
	struct {
		__u32 type;
		__u32 id;
		__u32 prog_id;
		__u32 pad;
		__u32 ifindex;
		__u32 attach_type;
	} head;
	int rc;

	_Static_assert(__builtin_offsetof(struct bpf_link_info, xdp) == __builtin_offsetof(__typeof__(head), ifindex),
		       "the union of struct bpf_link_info");
	rc = object_info(fd, &head, sizeof(head));
	memset(info, 0, sizeof(*info));
	if (rc < 0)
		return rc;
	info->type = head.type;
	info->id = head.id;
	info->prog_id = head.prog_id;
	info->ifindex = head.ifindex;
	info->attach_type = head.attach_type;
	return 0;
}
