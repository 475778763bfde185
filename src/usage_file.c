/*
 * usage_file.c
 *		What is pending is kept in a file from a shutdown to the next start.
 *
 * At a clean end of the server no worker can be started any more, so the
 * postmaster writes what is pending, and takes it over and removes the file
 * when it starts.  A crash writes none.
 */
#include "postgres.h"

#include <unistd.h>

#include "storage/fd.h"

#include "usage.h"
#include "usage_shared.h"

/* Below the data directory. */
#define SAVE_FILE "pg_stat/rk_apikeys.usage"
#define SAVE_MAGIC 0x524b5531

/* What is kept of an entry over a restart. */
typedef struct SavedUsage
{
	UsageKey	key;
	uint64		tenant;
	int64		last_used_at;
	int64		use_count;
	int64		denied_count;
	int64		has_addr;
	inet_struct addr;
} SavedUsage;

/*
 * At a clean end of the server: keep what is pending in a file, as no worker
 * can be started any more.  What fails is told and lost.
 */
void
usage_file_save(int code, Datum arg)
{
	FILE	   *file;
	HASH_SEQ_STATUS scan;
	UsageEntry *entry;
	uint32		magic = SAVE_MAGIC;
	bool		failed;

	/* After a crash the counts may be torn. */
	if (code != 0 || usage_shared == NULL)
		return;
	file = AllocateFile(SAVE_FILE ".tmp", PG_BINARY_W);
	if (file == NULL)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", SAVE_FILE ".tmp")));
		return;
	}
	failed = fwrite(&magic, sizeof(magic), 1, file) != 1;
	hash_seq_init(&scan, usage_entries);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		SavedUsage	saved;

		if (failed || !usage_is_pending(entry))
			continue;
		memset(&saved, 0, sizeof(saved));
		saved.key = entry->key;
		saved.tenant = entry->tenant;
		saved.last_used_at = (int64) pg_atomic_read_u64(&entry->last_used_at);
		saved.use_count = (int64) pg_atomic_read_u64(&entry->use_count);
		saved.denied_count = (int64) pg_atomic_read_u64(&entry->denied_count);
		saved.has_addr = entry->has_addr;
		saved.addr = entry->addr;
		failed = fwrite(&saved, sizeof(saved), 1, file) != 1;
	}
	if (FreeFile(file) != 0)
		failed = true;
	if (failed)
	{
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not write file \"%s\": %m", SAVE_FILE ".tmp")));
		unlink(SAVE_FILE ".tmp");
		return;
	}
	(void) durable_rename(SAVE_FILE ".tmp", SAVE_FILE, LOG);
}

/* At the start of the server: take over what was kept, and remove the file. */
void
usage_file_load(void)
{
	FILE	   *file = AllocateFile(SAVE_FILE, PG_BINARY_R);
	uint32		magic;
	SavedUsage	saved;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", SAVE_FILE)));
		return;
	}
	if (fread(&magic, sizeof(magic), 1, file) != 1 || magic != SAVE_MAGIC)
		ereport(LOG,
				(errmsg("ignoring file \"%s\": it is not of this version",
						SAVE_FILE)));
	else
	{
		while (fread(&saved, sizeof(saved), 1, file) == 1)
		{
			UsageEntry *entry;
			bool		found;

			if (pg_atomic_read_u32(&usage_shared->tracked) >= (uint32) usage_shared->max_tracked)
				break;
			entry = hash_search(usage_entries, &saved.key, HASH_ENTER_NULL, &found);
			if (entry == NULL || found)
				continue;
			entry->tenant = saved.tenant;
			pg_atomic_init_u64(&entry->last_used_at, saved.last_used_at);
			pg_atomic_init_u64(&entry->use_count, saved.use_count);
			pg_atomic_init_u64(&entry->denied_count, saved.denied_count);
			pg_atomic_init_u64(&entry->arrival, 0);
			/* Differ from all of these: pending. */
			pg_atomic_init_u64(&entry->flushed_at, 0);
			pg_atomic_init_u64(&entry->flushed_uses, 0);
			pg_atomic_init_u64(&entry->flushed_denials, 0);
			pg_atomic_init_u32(&entry->pepper_id, 0);
			SpinLockInit(&entry->mutex);
			entry->has_addr = saved.has_addr != 0;
			entry->addr = saved.addr;
			pg_atomic_fetch_add_u32(&usage_shared->tracked, 1);
		}
	}
	FreeFile(file);
	unlink(SAVE_FILE);
}
