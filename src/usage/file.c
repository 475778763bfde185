/*
 * file.c
 *		Pending entries, unrecorded uses, and the buckets of rate limits, are kept in
 *		a file from a shutdown to the next start.
 *
 * At a clean end of the server no worker can be started any more.  So the
 * postmaster writes these entries to a file.  At the next start it reads the
 * file and removes it.  A crash writes no file.  At a clean end no session is
 * left, so no units are reserved.
 *
 * A cold copy of a stopped server has the file too.  If the copy follows the
 * server, as a standby or from an archive, both would count the same use.  So
 * the file names its home, and a server that starts in recovery ignores a file
 * with another home.  A server that starts as a primary reads every file,
 * because it may be a restored copy, or come from pg_upgrade.
 */
#include "postgres.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "access/xlog.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/timestamp.h"

#include "base/grant.h"
#include "usage/shared.h"

/* Below the data directory. */
#define SAVE_FILE "pg_stat/rk_apikeys.usage"
#define SAVE_MAGIC 0x524b5536
/* 0.2: the same, without the home, unrecorded uses and buckets. */
#define SAVE_MAGIC_0_2 0x524b5533
/* 0.1: without the known counts, too. */
#define SAVE_MAGIC_0_1 0x524b5532

/* The part of an entry that is kept over a restart. */
typedef struct SavedUsage
{
	UsageKey	key;
	uint64		tenant;
	char		environment[TOKEN_NAME_MAX + 1];
	int64		last_used_at;
	int64		use_count;
	int64		denied_count;
	int64		has_addr;
	inet_struct addr;
	int64		known_uses;
	int64		known_denials;
	/* of a bucket, since 0.3 */
	int64		since;
	uint8		limit_id[USAGE_LIMIT_ID_LEN];
	char		family[TOKEN_KEY_ID_LEN + 1];
	bool		is_quota;
	int64		arrival;
	LimiterRate rate;
} SavedUsage;

/* The time of a part of the keys; of part -1: the end of these times. */
typedef struct SavedLost
{
	int32		part;
	Oid			database;
	int64		at;
} SavedLost;

static bool save_lost(FILE *file);
static void load_lost(FILE *file);
static bool is_to_save(UsageEntry *entry, const void *arg);
static void save_entry(UsageEntry *entry, SavedUsage *saved);
static void load_entry(UsageEntry *entry, const SavedUsage *saved);
static uint64 home_of(FILE *file);
static bool starts_in_recovery(void);

/*
 * on_shmem_exit callback of the postmaster: write the pending entries.  An error
 * is logged, and the entries are lost.
 */
void
usage_file_save(int code, Datum arg)
{
	FILE	   *file;
	UsageEntry *entry;
	TimestampTz now = GetCurrentTimestamp();
	UsageWalk	walk = {.wanted = is_to_save, .arg = &now, .alone = true};
	uint32		magic = SAVE_MAGIC;
	uint64		home;
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
	home = home_of(file);
	failed = fwrite(&magic, sizeof(magic), 1, file) != 1 ||
		fwrite(&home, sizeof(home), 1, file) != 1 || !save_lost(file);
	while (!failed && (entry = usage_hash_next(&walk)) != NULL)
	{
		SavedUsage	saved;

		save_entry(entry, &saved);
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

/* At the start of the server: read the entries, and remove the file. */
void
usage_file_load(void)
{
	FILE	   *file = AllocateFile(SAVE_FILE, PG_BINARY_R);
	uint32		magic;
	uint64		home;
	bool		is_foreign = false;
	size_t		size = sizeof(SavedUsage);
	SavedUsage	saved;

	if (file == NULL)
	{
		if (errno != ENOENT)
			ereport(LOG,
					(errcode_for_file_access(),
					 errmsg("could not read file \"%s\": %m", SAVE_FILE)));
		return;
	}
	if (fread(&magic, sizeof(magic), 1, file) != 1)
		magic = 0;
	if (magic == SAVE_MAGIC)
		is_foreign = fread(&home, sizeof(home), 1, file) != 1 ||
			home != home_of(file);
	if (magic == SAVE_MAGIC_0_1)
		size = offsetof(SavedUsage, known_uses);
	if (magic == SAVE_MAGIC_0_2)
		size = offsetof(SavedUsage, since);
	if (magic != SAVE_MAGIC && magic != SAVE_MAGIC_0_2 && magic != SAVE_MAGIC_0_1)
		ereport(LOG,
				(errmsg("ignoring file \"%s\" of another version",
						SAVE_FILE)));
	else if (is_foreign && starts_in_recovery())
		ereport(LOG,
				(errmsg("ignoring file \"%s\" of another data directory",
						SAVE_FILE),
				 errdetail("The server of that data directory counts the usage in the file.")));
	else
	{
		if (magic == SAVE_MAGIC)
			load_lost(file);
		/* Without the fields, regard all that the table has as known. */
		saved.known_uses = saved.known_denials = PG_INT64_MAX;
		while (fread(&saved, size, 1, file) == 1)
		{
			UsageTarget target;
			UsageEntry *entry;

			usage_hash_target(&target, saved.key.database, saved.key.key_id);
			entry = usage_hash_find(&target) == NULL ?
				usage_hash_add(&target, saved.tenant, false) : NULL;
			if (entry != NULL)
				load_entry(entry, &saved);
		}
	}
	FreeFile(file);
	unlink(SAVE_FILE);
}

/* Write the times of unrecorded uses.  Return whether it worked. */
static bool
save_lost(FILE *file)
{
	SavedLost	saved = {0};
	LostUse		lost;

	for (int i = 0; usage_lost_next(&i, &lost); i++)
	{
		saved.part = i;
		saved.database = lost.database;
		saved.at = lost.at;
		if (fwrite(&saved, sizeof(saved), 1, file) != 1)
			return false;
	}
	saved.part = -1;
	return fwrite(&saved, sizeof(saved), 1, file) == 1;
}

static void
load_lost(FILE *file)
{
	SavedLost	saved;

	while (fread(&saved, sizeof(saved), 1, file) == 1 && saved.part >= 0)
		usage_lost_load(saved.part, saved.database, saved.at);
}

/* UsageFilter.  arg: the time.  A rate limit that is full again is not saved. */
static bool
is_to_save(UsageEntry *entry, const void *arg)
{
	if (usage_is_rate_bucket(entry))
		return usage_is_held(entry, *(const TimestampTz *) arg);
	return usage_is_pending(entry);
}

static void
save_entry(UsageEntry *entry, SavedUsage *saved)
{
	memset(saved, 0, sizeof(SavedUsage));
	saved->key = entry->key;
	saved->tenant = entry->tenant;
	saved->last_used_at = (int64) pg_atomic_read_u64(&entry->last_used_at);
	saved->use_count = (int64) pg_atomic_read_u64(&entry->use_count);
	saved->denied_count = (int64) pg_atomic_read_u64(&entry->denied_count);
	saved->known_uses = entry->known_uses;
	saved->known_denials = entry->known_denials;
	if (usage_is_bucket(entry->key.key_id))
	{
		saved->since = entry->since;
		memcpy(saved->limit_id, entry->limit_id, sizeof(saved->limit_id));
		memcpy(saved->family, entry->family, sizeof(saved->family));
		saved->is_quota = entry->is_quota;
		saved->arrival = entry->bucket.limiter.arrival;
		saved->rate = entry->bucket.limiter.rate;
	}
	else
	{
		memcpy(saved->environment, entry->environment, sizeof(saved->environment));
		saved->has_addr = entry->has_addr;
		saved->addr = entry->addr;
	}
}

/* Fill an entry that was just made. */
static void
load_entry(UsageEntry *entry, const SavedUsage *saved)
{
	pg_atomic_write_u64(&entry->last_used_at, saved->last_used_at);
	pg_atomic_write_u64(&entry->use_count, saved->use_count);
	pg_atomic_write_u64(&entry->denied_count, saved->denied_count);
	entry->known_uses = saved->known_uses;
	entry->known_denials = saved->known_denials;
	if (usage_is_bucket(entry->key.key_id))
	{
		entry->since = saved->since;
		memcpy(entry->limit_id, saved->limit_id, sizeof(entry->limit_id));
		memcpy(entry->family, saved->family, sizeof(entry->family));
		entry->family[TOKEN_KEY_ID_LEN] = '\0';
		entry->is_quota = saved->is_quota;
		entry->bucket.limiter.arrival = saved->arrival;
		entry->bucket.limiter.rate = saved->rate;
		entry->bucket.serial = pg_atomic_add_fetch_u64(&usage_shared->serial, 1);
		if (!entry->is_quota)
			return;
	}
	else
	{
		memcpy(entry->environment, saved->environment, sizeof(entry->environment));
		entry->environment[TOKEN_NAME_MAX] = '\0';
		entry->has_addr = saved->has_addr != 0;
		/* 0.2 kept an address as it was given. */
		if (entry->has_addr)
		{
			inet		addr = {.inet_data = saved->addr};

			SET_INET_VARSIZE(&addr);
			grant_host(&addr, &entry->addr);
		}
	}
	usage_hash_set_dirty(entry);
}

/*
 * Return a number for the place of the file: its inode, the path of the data
 * directory and the name of the host.  A copy has another inode.  An image of a
 * disk has the same inode, but another path or host.  The device is not part of
 * the number, because it may change when the machine starts.
 */
static uint64
home_of(FILE *file)
{
	char		host[256] = "";
	struct stat status = {0};
	uint64		home;

	(void) gethostname(host, sizeof(host) - 1);
	(void) fstat(fileno(file), &status);
	home = hash_bytes_extended((const unsigned char *) &status.st_ino,
							   sizeof(status.st_ino), 0);
	home = hash_bytes_extended((const unsigned char *) DataDir,
							   strlen(DataDir), home);
	return hash_bytes_extended((const unsigned char *) host, strlen(host), home);
}

/*
 * Return whether the server starts as a standby, or recovers from an archive.
 * Shared memory does not say so yet.
 */
static bool
starts_in_recovery(void)
{
	return access(STANDBY_SIGNAL_FILE, F_OK) == 0 ||
		access(RECOVERY_SIGNAL_FILE, F_OK) == 0;
}
