/*
 * columns.h
 *		What each column of api_keys is.
 */
#ifndef COLUMNS_H
#define COLUMNS_H

#include "base/store.h"

/* Flags of a column. */
#define COLUMN_DATED 0x1		/* a change moves updated_at */
#define COLUMN_TOLD 0x2			/* a change stands in the key's event */
#define COLUMN_FIXED 0x4		/* only the extension's owner may change it */
#define COLUMN_MADE 0x8			/* the trigger sets it in a new row */
#define COLUMN_COPIED 0x10		/* the successor of a rotation has the same */

#define COLUMN_SETTING (COLUMN_DATED | COLUMN_TOLD)

extern int	columns_flags(int column);
extern const char *columns_name(int column);
extern int	columns_number(TupleDesc desc, int column);
extern int	columns_of_number(TupleDesc desc, int number);
extern ArrayType *columns_not_told(void);

#endif
