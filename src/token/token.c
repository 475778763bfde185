/*
 * token.c
 *		What a token looks like: make, parse, mask, find.
 *
 *		rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j
 *		prefix_environment_key id (12)_secret (43) and check digits (6)
 *
 * This file reads no catalog and no setting.  Its functions accept any bytes,
 * and read none beyond the given length.  They look at single bytes, because in
 * the server's encodings no longer character contains an ASCII byte.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "port.h"
#include "utils/pg_crc.h"

#include "token/token.h"

static const char base62[] =
"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/* How much of a text is scanned between two looks for a cancel. */
#define SCAN_CHUNK (1024 * 1024)

/* The number of stars that replace a secret. */
#define MASK_LEN 8

/*
 * Where a text may be a name, an end of fewer base62 digits is not masked as
 * the end of a token.  So few digits of a token leave so much of its secret
 * unknown that nobody can guess the rest.
 */
#define LONG_TAIL 20

/* The facts about a field of a text.  A field is a run of base62 digits. */
typedef struct Field
{
	size_t		len;			/* bytes */
	uint8		classes;		/* the classes of all bytes together */
	bool		name;			/* all bytes fit a name, whatever the length */
	size_t		since_letter;	/* bytes from the last small letter to the end,
								 * if all of them fit a name; 0: no such
								 * letter */
} Field;

/* The last fields of a text that is read byte by byte, one '_' between them. */
typedef struct FieldScan
{
	Field		prefix;			/* this field, or its end, may be a prefix */
	Field		environment;
	Field		key_id;
	Field		current;		/* the field of the last byte */
} FieldScan;

static size_t redact(char *s, size_t len, size_t min_tail);
static size_t finish_redaction(char *s, size_t len, size_t from, size_t to);
static bool scan_byte(FieldScan *scan, char c);
static size_t environment_to_tail(const FieldScan *scan);
static bool tail_of_name(const FieldScan *scan);
static bool plain(uint8 byte_classes);
static size_t prefix_begin(const char *s, size_t prefix_end, size_t floor);
static void random_digits(char *out, int count);
static void check_digits(const char *s, size_t len, char *out);

/* The classes of a byte, in ASCII.  Other bytes have no class. */
#define DIGIT 1
#define SMALL 2
#define CAPITAL 4
#define NOT_HEX 8				/* a letter after f */

static const uint8 classes[256] = {
	['0'] = DIGIT, ['1'] = DIGIT, ['2'] = DIGIT, ['3'] = DIGIT, ['4'] = DIGIT,
	['5'] = DIGIT, ['6'] = DIGIT, ['7'] = DIGIT, ['8'] = DIGIT, ['9'] = DIGIT,
#define LETTER(capital, small) \
	[capital] = CAPITAL | ((small) > 'f' ? NOT_HEX : 0), \
	[small] = SMALL | ((small) > 'f' ? NOT_HEX : 0)
	LETTER('A', 'a'), LETTER('B', 'b'), LETTER('C', 'c'), LETTER('D', 'd'),
	LETTER('E', 'e'), LETTER('F', 'f'), LETTER('G', 'g'), LETTER('H', 'h'),
	LETTER('I', 'i'), LETTER('J', 'j'), LETTER('K', 'k'), LETTER('L', 'l'),
	LETTER('M', 'm'), LETTER('N', 'n'), LETTER('O', 'o'), LETTER('P', 'p'),
	LETTER('Q', 'q'), LETTER('R', 'r'), LETTER('S', 's'), LETTER('T', 't'),
	LETTER('U', 'u'), LETTER('V', 'v'), LETTER('W', 'w'), LETTER('X', 'x'),
	LETTER('Y', 'y'), LETTER('Z', 'z')
#undef LETTER
};

static inline bool
is_name_start(char c)
{
	return (classes[(uint8) c] & SMALL) != 0;
}

static inline bool
is_name_char(char c)
{
	return (classes[(uint8) c] & (SMALL | DIGIT)) != 0;
}

static inline bool
is_base62(char c)
{
	return classes[(uint8) c] != 0;
}

static bool
all_base62(const char *s, size_t len)
{
	bool		good = true;

	/* No branch, because nearly always all of the bytes are digits. */
	for (size_t i = 0; i < len; i++)
		good &= is_base62(s[i]);
	return good;
}

/*
 * Return whether the string is a valid prefix or environment:
 * [a-z][a-z0-9]{0,15}.
 */
bool
token_name_ok(const char *s, size_t len)
{
	if (len < 1 || len > TOKEN_NAME_MAX || !is_name_start(s[0]))
		return false;
	for (size_t i = 1; i < len; i++)
		if (!is_name_char(s[i]))
			return false;
	return true;
}

/*
 * Return whether the string has the shape and the check digits of a token, and
 * set its parts.
 */
bool
token_parse(const char *s, size_t len, TokenParts *parts)
{
	return token_split(s, len, parts) && token_check(s, len);
}

/*
 * Return whether the string has the shape of a token, and set its parts.  The
 * parts are split off from the right, where they have fixed lengths.
 */
bool
token_split(const char *s, size_t len, TokenParts *parts)
{
	const char *separator;
	size_t		names_len;

	if (len < TOKEN_MIN_LEN || len > TOKEN_MAX_LEN)
		return false;
	parts->secret = s + len - TOKEN_TAIL_LEN;
	parts->key_id = parts->secret - 1 - TOKEN_KEY_ID_LEN;
	if (parts->secret[-1] != '_' || parts->key_id[-1] != '_' ||
		!all_base62(parts->secret, TOKEN_TAIL_LEN) ||
		!all_base62(parts->key_id, TOKEN_KEY_ID_LEN))
		return false;

	names_len = parts->key_id - 1 - s;
	separator = memchr(s, '_', names_len);
	if (separator == NULL)
		return false;
	parts->prefix = s;
	parts->prefix_len = separator - s;
	parts->environment = separator + 1;
	parts->environment_len = names_len - parts->prefix_len - 1;
	return token_name_ok(parts->prefix, parts->prefix_len) &&
		token_name_ok(parts->environment, parts->environment_len);
}

/*
 * Return the key id in a string that begins as a token does, whatever follows:
 * a token, a part of one, or a mask.  Return NULL for any other string.
 */
const char *
token_key_id(const char *s, size_t len)
{
	const char *end = s + len;

	for (int names = 0; names < 2; names++)
	{
		const char *separator = memchr(s, '_', end - s);

		if (separator == NULL || !token_name_ok(s, separator - s))
			return NULL;
		s = separator + 1;
	}
	return end - s > TOKEN_KEY_ID_LEN && s[TOKEN_KEY_ID_LEN] == '_' &&
		all_base62(s, TOKEN_KEY_ID_LEN) ? s : NULL;
}

/*
 * Return whether the check digits of a string are right.  The string must have
 * the shape of a token.
 */
bool
token_check(const char *s, size_t len)
{
	char		check[TOKEN_CHECK_LEN];

	check_digits(s, len - TOKEN_CHECK_LEN, check);
	for (int i = 0; i < TOKEN_CHECK_LEN; i++)
		if (check[i] != s[len - TOKEN_CHECK_LEN + i])
			return false;
	return true;
}

/*
 * Make a token and return its length.  The prefix and the environment must be
 * valid names.  The buffer has TOKEN_MAX_LEN + 1 bytes, and the token is
 * terminated.  The caller must wipe the buffer.
 */
size_t
token_make(const char *prefix, const char *environment, char *token)
{
	size_t		len = snprintf(token, TOKEN_MAX_LEN + 1, "%s_%s_",
							   prefix, environment);

	random_digits(token + len, TOKEN_KEY_ID_LEN);
	len += TOKEN_KEY_ID_LEN;
	token[len++] = '_';
	random_digits(token + len, TOKEN_SECRET_LEN);
	len += TOKEN_SECRET_LEN;
	check_digits(token, len, token + len);
	len += TOKEN_CHECK_LEN;
	token[len] = '\0';
	return len;
}

/*
 * Make a key id.  The buffer has TOKEN_KEY_ID_LEN + 1 bytes, and the key id is
 * terminated.
 */
void
token_make_key_id(char *key_id)
{
	random_digits(key_id, TOKEN_KEY_ID_LEN);
	key_id[TOKEN_KEY_ID_LEN] = '\0';
}

/*
 * Write the masked form of a token, rk_prod_7Yh2kQ9mZp1x_********DeFg, and
 * return its length.  The buffer has TOKEN_MAX_LEN bytes, and the masked form
 * is not terminated.
 */
size_t
token_mask(const TokenParts *parts, char *out)
{
	size_t		head = parts->secret - parts->prefix;

	memmove(out, parts->prefix, head);
	memset(out + head, '*', MASK_LEN);
	memmove(out + head + MASK_LEN,
			parts->secret + TOKEN_SECRET_LEN - TOKEN_HINT_LEN, TOKEN_HINT_LEN);
	return head + MASK_LEN + TOKEN_HINT_LEN;
}

/*
 * Return whether a text has a token at or after the position "from", and set
 * the token's parts, start and length.  The prefix is the longest one for
 * which the check digits are right.  If base62 digits follow the token, they
 * do not belong to it.
 *
 * The time is linear in the bytes up to the token's end.  If the next call
 * continues at that end, each byte of the text is read a bounded number of
 * times.
 */
bool
token_find(const char *s, size_t len, size_t from, TokenParts *parts,
		   size_t *start, size_t *token_len)
{
	FieldScan	scan = {0};

	for (size_t i = from; i < len; i++)
	{
		size_t		tail = i + 1;
		size_t		prefix_end;

		if (tail % SCAN_CHUNK == 0)
			CHECK_FOR_INTERRUPTS();
		if (!scan_byte(&scan, s[i]))
			continue;
		if (len - tail < TOKEN_TAIL_LEN || !all_base62(s + tail, TOKEN_TAIL_LEN))
			continue;
		prefix_end = tail - environment_to_tail(&scan) - 1;
		for (size_t begin = prefix_begin(s, prefix_end, from);
			 begin < prefix_end; begin++)
		{
			if (token_parse(s + begin, tail + TOKEN_TAIL_LEN - begin, parts))
			{
				*start = begin;
				*token_len = tail + TOKEN_TAIL_LEN - begin;
				return true;
			}
		}
	}
	return false;
}

/*
 * Return whether a text may hold something to mask: two underscores with a key
 * id between them.  False means that token_redact() would change nothing.  Runs
 * at the speed of memchr().
 */
bool
token_suspected(const char *s, size_t len)
{
	const char *end = s + len;
	const char *at = s;

	while ((at = memchr(at, '_', end - at)) != NULL)
	{
		if (at - s > TOKEN_KEY_ID_LEN && at[-TOKEN_KEY_ID_LEN - 1] == '_' &&
			all_base62(at - TOKEN_KEY_ID_LEN, TOKEN_KEY_ID_LEN))
			return true;
		at++;
	}
	return false;
}

/*
 * Mask, in place, all that looks like a token, and return the new length.
 *
 * Any run of base62 digits after prefix_environment_<12 digits>_ is masked,
 * whatever its length and check digits, unless it ends a name: see
 * tail_of_name().  Texts are cut within a token, and tokens are mistyped.  A part
 * of one token may also be a part of the next, for example where two tokens were
 * pasted without a blank between them.
 *
 * The new length is never greater than the old one, and the bytes that become
 * free are wiped.  The time is linear.  Allocates nothing, and raises nothing
 * except that more than SCAN_CHUNK bytes can be cancelled.
 */
size_t
token_redact(char *s, size_t len)
{
	return redact(s, len, 0);
}

/*
 * Do the same as token_redact(), but mask only runs of LONG_TAIL digits or
 * more.  This is for a text that is kept, because such a text may be a name
 * that only looks like a token, for example app_billing_subscription_reader.
 */
size_t
token_redact_kept(char *s, size_t len)
{
	return redact(s, len, LONG_TAIL);
}

/*
 * Mask, in place, every end of a token whose beginning may have been cut away.
 * Errors in JSON and XML cut texts so.  A run of LONG_TAIL base62 digits or
 * more that is not plain() is masked in a word after "..." or after a line
 * break.  Return and wipe as token_redact() does.
 */
size_t
token_redact_cut(char *s, size_t len)
{
	size_t		from = 0;		/* as in redact() */
	size_t		to = 0;
	bool		cut = false;	/* in a word whose beginning may be cut away */

	for (size_t at = 0; at < len;)
	{
		size_t		begin = at;
		uint8		run_classes = 0;

		while (at < len && is_base62(s[at]))
			run_classes |= classes[(uint8) s[at++]];
		if (cut && at - begin >= LONG_TAIL && !plain(run_classes))
		{
			memmove(s + to, s + from, begin - from);
			to += begin - from;
			memset(s + to, '*', MASK_LEN);
			to += MASK_LEN;
			from = at;
		}
		if (at == len)
			break;
		if (s[at] != '_')
			cut = s[at] == '\n' ||
				(at >= 2 && memcmp(s + at - 2, "...", 3) == 0);
		at++;
	}
	return finish_redaction(s, len, from, to);
}

/*
 * Do the work of token_redact(), but leave runs of fewer than min_tail base62
 * digits as they are.
 */
static size_t
redact(char *s, size_t len, size_t min_tail)
{
	FieldScan	scan = {0};
	size_t		from = 0;		/* the first byte that was not moved yet */
	size_t		to = 0;			/* the byte s[from] moves to here */
	size_t		checked = 0;	/* where a cancel was looked for */

	for (size_t tail = 0; tail < len;)
	{
		size_t		end;
		size_t		prefix_end;
		char		masked[MASK_LEN + TOKEN_HINT_LEN];
		size_t		masked_len;
		TokenParts	parts;

		if (tail - checked >= SCAN_CHUNK)
		{
			checked = tail;
			CHECK_FOR_INTERRUPTS();
		}
		if (!scan_byte(&scan, s[tail++]))
			continue;
		prefix_end = tail - environment_to_tail(&scan) - 1;
		for (end = tail; end < len && is_base62(s[end]); end++)
			scan_byte(&scan, s[end]);
		if (end - tail < min_tail || tail_of_name(&scan))
		{
			tail = end;
			continue;
		}
		masked_len = Min(end - tail, (size_t) MASK_LEN);
		memset(masked, '*', masked_len);

		/*
		 * Show the last digits of the secret only if the token is whole and no
		 * part of it was masked before.
		 */
		if (end - tail == TOKEN_TAIL_LEN)
			for (size_t begin = prefix_begin(s, prefix_end, from);
				 begin < prefix_end; begin++)
			{
				if (token_parse(s + begin, end - begin, &parts))
				{
					memcpy(masked + MASK_LEN,
						   parts.secret + TOKEN_SECRET_LEN - TOKEN_HINT_LEN,
						   TOKEN_HINT_LEN);
					masked_len += TOKEN_HINT_LEN;
					/* The shown digits now end the field: maybe a prefix */
					scan.current.since_letter = 1;
					break;
				}
			}

		memmove(s + to, s + from, tail - from);
		to += tail - from;
		memcpy(s + to, masked, masked_len);
		to += masked_len;
		from = tail = end;
	}
	return finish_redaction(s, len, from, to);
}

/*
 * Move the rest of the text to its place, and return the new length.  Wipe the
 * bytes behind the new end, because they may hold half a token.  The zero bytes
 * also terminate a C string that became shorter.
 */
static size_t
finish_redaction(char *s, size_t len, size_t from, size_t to)
{
	size_t		left = len - from;

	memmove(s + to, s + from, left);
	explicit_bzero(s + to + left, from - to);
	return to + left;
}

/*
 * Add the next byte of a text to the scan.  Return whether the secret of a
 * token could begin after this byte: the byte ends prefix_environment_<12
 * digits>_.
 */
static bool
scan_byte(FieldScan *scan, char c)
{
	Field	   *field = &scan->current;

	if (is_base62(c))
	{
		if (field->len == 0)
			field->name = is_name_start(c);
		else
			field->name = field->name && is_name_char(c);
		if (is_name_start(c))
			field->since_letter = 1;
		else if (!is_name_char(c))
			field->since_letter = 0;
		else if (field->since_letter > 0)
			field->since_letter++;
		field->classes |= classes[(uint8) c];
		field->len++;
		return false;
	}
	if (c != '_')
	{
		memset(scan, 0, sizeof(*scan));
		return false;
	}
	scan->prefix = scan->environment;
	scan->environment = scan->key_id;
	scan->key_id = *field;
	memset(field, 0, sizeof(*field));
	return scan->key_id.len == TOKEN_KEY_ID_LEN &&
		scan->environment.name && scan->environment.len <= TOKEN_NAME_MAX &&
		scan->prefix.since_letter > 0 &&
		scan->prefix.since_letter <= TOKEN_NAME_MAX;
}

/* Return how many bytes before a token's secret its environment begins. */
static size_t
environment_to_tail(const FieldScan *scan)
{
	return scan->environment.len + 1 + TOKEN_KEY_ID_LEN + 1;
}

/*
 * Return whether the field after a key id ends a name rather than a token, for
 * example app_user_subscription_items.  Names have no capital letter.  A short
 * tail may be left, because it tells too little of a secret.  A long one must
 * be plain, and so must the key id: small letters and digits together may be a
 * token that the server has folded to small letters.
 */
static bool
tail_of_name(const FieldScan *scan)
{
	uint8		key_id = scan->key_id.classes;
	uint8		tail = scan->current.classes;

	if (scan->current.len < LONG_TAIL)
		return ((key_id | tail) & CAPITAL) == 0;
	return plain(key_id) && plain(tail);
}

/*
 * Return whether bytes of these classes are small letters alone, or hexadecimal
 * digits with small letters.  LONG_TAIL random base62 digits are so with a
 * probability of (26/62)^20, 3 in 10^8.
 */
static bool
plain(uint8 byte_classes)
{
	return (byte_classes & CAPITAL) == 0 &&
		(byte_classes & (DIGIT | NOT_HEX)) != (DIGIT | NOT_HEX);
}

/*
 * Return the first place at or after floor where a prefix that ends at
 * prefix_end could begin; prefix_end if there is no such place.
 */
static size_t
prefix_begin(const char *s, size_t prefix_end, size_t floor)
{
	size_t		begin = prefix_end;

	while (begin > floor && prefix_end - begin < TOKEN_NAME_MAX &&
		   is_name_char(s[begin - 1]))
		begin--;
	return begin;
}

/*
 * Write random base62 digits, each equally likely.  Six random bits have 64
 * values.  The two values without a digit are discarded.  Raise XX000 without
 * random bytes.
 */
static void
random_digits(char *out, int count)
{
	uint8		pool[64];
	size_t		used = sizeof(pool);

	for (int i = 0; i < count;)
	{
		uint8		value;

		if (used == sizeof(pool))
		{
			if (!pg_strong_random(pool, sizeof(pool)))
				ereport(ERROR,
						(errcode(ERRCODE_INTERNAL_ERROR),
						 errmsg("could not get random bytes for a token")));
			used = 0;
		}
		value = pool[used++] & 63;
		if (value < 62)
			out[i++] = base62[value];
	}
	explicit_bzero(pool, sizeof(pool));
}

/*
 * Write the check digits of a string: its CRC-32 (IEEE 802.3, as in zlib) as
 * TOKEN_CHECK_LEN base62 digits, the highest digit first.
 */
static void
check_digits(const char *s, size_t len, char *out)
{
	pg_crc32	crc;

	INIT_TRADITIONAL_CRC32(crc);
	COMP_TRADITIONAL_CRC32(crc, s, len);
	FIN_TRADITIONAL_CRC32(crc);
	for (int i = TOKEN_CHECK_LEN - 1; i >= 0; i--)
	{
		out[i] = base62[crc % 62];
		crc /= 62;
	}
}
